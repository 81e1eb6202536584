// Goroutines on several threads, channels, timers, a loopback connection, and memory that must stay the same.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

var problems atomic.Int64

func problem(format string, values ...any) {
	problems.Add(1)
	fmt.Printf(format+"\n", values...)
}

func grows(what string, value *atomic.Int64) {
	from := value.Load()
	for end := time.Now().Add(time.Minute); value.Load() <= from; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			problem("%s stays at %d", what, from)
			return
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
}

func main() {
	runtime.GOMAXPROCS(4)
	memory := make([]byte, 32<<20)
	_, err := rand.Read(memory)
	check(err)
	before := sha256.Sum256(memory)

	var ring, ticks, spins, echoes, garbage atomic.Int64
	first := make(chan int64)
	in := first
	for i := 0; i < 100; i++ {
		out := make(chan int64)
		go func(in, out chan int64) {
			for n := range in {
				out <- n + 1
			}
		}(in, out)
		in = out
	}
	go func() {
		for n := int64(0); ; n++ {
			first <- n
			if got := <-in; got != n+100 {
				problem("ring: %d, was %d", got, n)
			}
			ring.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	go func() {
		for range time.Tick(2 * time.Millisecond) {
			ticks.Add(1)
		}
	}()
	// Preempted by signals.
	go func() {
		for {
			spins.Add(1)
		}
	}()
	go func() {
		for {
			_ = bytes.Repeat([]byte("x"), 1<<16)
			garbage.Add(1)
			time.Sleep(100 * time.Microsecond)
		}
	}()
	// A thread of its own.
	go func() {
		runtime.LockOSThread()
		select {}
	}()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go func() {
		for {
			c, err := listener.Accept()
			check(err)
			go func() {
				lines := bufio.NewReader(c)
				for {
					line, err := lines.ReadBytes('\n')
					if err != nil {
						return
					}
					_, _ = c.Write(line)
				}
			}()
		}
	}()
	client, err := net.Dial("tcp", listener.Addr().String())
	check(err)
	go func() {
		lines := bufio.NewReader(client)
		for n := 0; ; n++ {
			text := fmt.Sprintf("line %d\n", n)
			_, err := client.Write([]byte(text))
			if err != nil {
				problem("write: %v", err)
				return
			}
			line, err := lines.ReadString('\n')
			if err != nil || line != text {
				problem("echo: %q %v, was %q", line, err, text)
				return
			}
			echoes.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	all := map[string]*atomic.Int64{"ring": &ring, "ticks": &ticks, "spins": &spins, "echoes": &echoes, "garbage": &garbage}
	for what, value := range all {
		grows(what, value)
	}

	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	fmt.Println("ready")
	<-usr1
	if sha256.Sum256(memory) != before {
		problem("memory is not as it was")
	}
	for what, value := range all {
		grows(what, value)
	}
	runtime.GC()
	out, err := exec.Command("/bin/echo", "a", "child").Output()
	if err != nil || string(out) != "a child\n" {
		problem("child: %q %v", out, err)
	}
	if problems.Load() == 0 {
		fmt.Println("ok")
		return
	}
	os.Exit(1)
}
