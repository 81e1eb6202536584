//! Threads with locks, channels, thread-local storage and a loopback connection, and memory that must stay the same.
use std::cell::Cell;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

static PROBLEMS: AtomicU64 = AtomicU64::new(0);
thread_local!(static MINE: Cell<u64> = const { Cell::new(0) });

fn problem(text: &str) {
    PROBLEMS.fetch_add(1, SeqCst);
    println!("{text}");
}

fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn grows(what: &str, value: &AtomicU64) {
    let (from, start) = (value.load(SeqCst), Instant::now());
    while value.load(SeqCst) <= from {
        if start.elapsed() > Duration::from_secs(60) {
            return problem(&format!("{what} stays at {from}"));
        }
        sleep(Duration::from_millis(1));
    }
}

fn counter() -> Arc<AtomicU64> {
    Arc::default()
}

fn main() {
    let mut memory = vec![0; 32 << 20];
    std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut memory)).unwrap();
    let before = sum(&memory);
    let all = [("turns", counter()), ("channel", counter()), ("echoes", counter()), ("local", counter())];
    let [turns, channel, echoes, local] = [0, 1, 2, 3].map(|i: usize| all[i].1.clone());

    // Four threads take turns.
    let turn = Arc::new((Mutex::new(0_u64), Condvar::new()));
    for me in 0..4 {
        let (turn, turns) = (turn.clone(), turns.clone());
        spawn(move || {
            loop {
                let mut now = turn.0.lock().unwrap();
                while *now % 4 != me {
                    now = turn.1.wait(now).unwrap();
                }
                *now += 1;
                if turns.fetch_add(1, SeqCst) + 1 != *now {
                    problem("a turn was lost");
                }
                turn.1.notify_all();
            }
        });
    }
    let (sender, receiver) = mpsc::sync_channel(4);
    spawn(move || (0_u64..).try_for_each(|n| sender.send(n)));
    spawn(move || {
        for (n, got) in receiver.iter().enumerate() {
            if n as u64 != got {
                problem(&format!("channel: {got}, was {n}"));
            }
            channel.fetch_add(1, SeqCst);
        }
    });
    for me in 1..=4 {
        let local = local.clone();
        spawn(move || {
            MINE.set(me);
            loop {
                if MINE.get() % 10 != me {
                    problem("thread-local storage is another thread's");
                }
                MINE.set(MINE.get() + 10);
                local.fetch_add(1, SeqCst);
                sleep(Duration::from_micros(500));
            }
        });
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    spawn(move || {
        let mut out = server.try_clone().unwrap();
        BufReader::new(server).lines().try_for_each(|line| writeln!(out, "{}", line?))
    });
    spawn(move || {
        let mut lines = BufReader::new(client.try_clone().unwrap());
        for n in 0_u64.. {
            let mut line = String::new();
            let text = format!("line {n}\n");
            let said = client.write_all(text.as_bytes()).and_then(|()| lines.read_line(&mut line));
            if said.is_err() || line != text {
                return problem(&format!("echo: {line:?} {said:?}, was {text:?}"));
            }
            echoes.fetch_add(1, SeqCst);
            sleep(Duration::from_millis(1));
        }
    });
    for (what, value) in &all {
        grows(what, value);
    }

    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    if sum(&memory) != before {
        problem("memory is not as it was");
    }
    for (what, value) in &all {
        grows(what, value);
    }
    spawn(|| MINE.set(1)).join().unwrap();
    if PROBLEMS.load(SeqCst) == 0 {
        println!("ok");
    }
}
