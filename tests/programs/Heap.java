// Threads, timers, garbage, a loopback connection, and a heap that must stay the same.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

public class Heap {
    static final AtomicLong problems = new AtomicLong();

    static void problem(String text) {
        problems.incrementAndGet();
        System.out.println(text);
    }

    static byte[] digest(List<byte[]> memory) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        memory.forEach(digest::update);
        return digest.digest();
    }

    static void grows(String what, AtomicLong value) throws Exception {
        long from = value.get();
        for (int i = 0; value.get() <= from; i++) {
            if (i > 60000) {
                problem(what + " stays at " + from);
                return;
            }
            Thread.sleep(1);
        }
    }

    interface Work {
        void run() throws Exception;
    }

    static void start(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception e) {
                problem(e.toString());
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    static BufferedReader reader(Socket socket) throws Exception {
        return new BufferedReader(new InputStreamReader(socket.getInputStream()));
    }

    public static void main(String[] args) throws Exception {
        Random random = new Random();
        List<byte[]> memory = new ArrayList<>();
        Map<String, Integer> map = new HashMap<>();
        for (int i = 0; i < 32; i++) {
            byte[] part = new byte[1 << 20];
            random.nextBytes(part);
            memory.add(part);
        }
        for (int i = 0; i < 100000; i++) {
            map.put("key " + i, i);
        }
        byte[] before = digest(memory);
        Map<String, AtomicLong> counts = new LinkedHashMap<>();
        for (String name : new String[] {"timer", "queue", "garbage", "echo"}) {
            counts.put(name, new AtomicLong());
        }

        ScheduledExecutorService timers = Executors.newScheduledThreadPool(2, task -> {
            Thread thread = new Thread(task);
            thread.setDaemon(true);
            return thread;
        });
        timers.scheduleAtFixedRate(() -> counts.get("timer").incrementAndGet(), 1, 1, TimeUnit.MILLISECONDS);
        SynchronousQueue<Long> queue = new SynchronousQueue<>();
        start(() -> {
            for (long n = 0; ; n++) {
                queue.put(n);
            }
        });
        start(() -> {
            for (long n = 0; ; n++) {
                long got = queue.take();
                if (got != n) {
                    problem("queue: " + got + ", was " + n);
                }
                counts.get("queue").incrementAndGet();
            }
        });
        start(() -> {
            List<String> kept = new ArrayList<>();
            for (;;) {
                for (int i = 0; i < 1000; i++) {
                    kept.add("text " + i);
                }
                if (kept.size() > 100000) {
                    kept.clear();
                }
                counts.get("garbage").incrementAndGet();
                Thread.sleep(1);
            }
        });
        ServerSocket listener = new ServerSocket(0, 5, InetAddress.getLoopbackAddress());
        Socket client = new Socket(listener.getInetAddress(), listener.getLocalPort());
        Socket server = listener.accept();
        start(() -> {
            BufferedReader lines = reader(server);
            OutputStream out = server.getOutputStream();
            for (String line; (line = lines.readLine()) != null; ) {
                out.write((line + "\n").getBytes());
            }
        });
        start(() -> {
            BufferedReader lines = reader(client);
            OutputStream out = client.getOutputStream();
            for (long n = 0; ; n++) {
                out.write(("line " + n + "\n").getBytes());
                String line = lines.readLine();
                if (!("line " + n).equals(line)) {
                    problem("echo: " + line + ", was line " + n);
                }
                counts.get("echo").incrementAndGet();
                Thread.sleep(1);
            }
        });
        for (Map.Entry<String, AtomicLong> count : counts.entrySet()) {
            grows(count.getKey(), count.getValue());
        }

        System.out.println("ready");
        new BufferedReader(new InputStreamReader(System.in)).readLine();
        if (!Arrays.equals(digest(memory), before)) {
            problem("memory is not as it was");
        }
        for (int i = 0; i < 100000; i++) {
            if (map.get("key " + i) != i) {
                problem("key " + i + " is " + map.get("key " + i));
            }
        }
        for (Map.Entry<String, AtomicLong> count : counts.entrySet()) {
            grows(count.getKey(), count.getValue());
        }
        System.gc();
        if (!Arrays.equals(digest(memory), before)) {
            problem("memory is not as it was after collecting garbage");
        }
        if (problems.get() == 0) {
            System.out.println("ok");
        }
        System.exit(problems.get() == 0 ? 0 : 1);
    }
}
