//! Not tests but figures: `cargo test --release -p airlock-loader remote::tests::measure -- --ignored --nocapture`.

use super::super::*;
use super::*;
use crate::procfs::ProcFs;

fn per(what: &str, count: u32, mut run: impl FnMut()) {
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{what}: {:.2} us", times[2].as_secs_f64() * 1e6 / f64::from(count));
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    per("one system call", 2000, || {
        for _ in 0..2000 {
            t.syscall(libc::SYS_getppid, [0; 6]).unwrap().unwrap();
        }
    });
    per("a batch of one call", 2000, || {
        for _ in 0..2000 {
            let mut batch = Batch::new();
            batch.must(libc::SYS_getppid, []);
            batch.run(&mut t, &region).unwrap();
        }
    });
    per("a call in a batch of 1000", 100_000, || {
        for _ in 0..100 {
            let mut batch = Batch::new();
            for _ in 0..1000 {
                batch.must(libc::SYS_getppid, []);
            }
            batch.run(&mut t, &region).unwrap();
        }
    });
    per("map and unmap a region", 100, || {
        for _ in 0..100 {
            Region::map(&mut t, None).unwrap().unmap(&mut t).unwrap();
        }
    });
    per("fork and kill", 100, || {
        for _ in 0..100 {
            let fork = Clone3 { exit_signal: libc::SIGCHLD, ..Clone3::default() };
            t.clone3(&region, &fork).unwrap().unwrap().kill().unwrap();
        }
    });
    t.detach(0).unwrap();
    per("seize and detach a process", 200, || {
        for _ in 0..200 {
            Tracee::seize(program.pid()).unwrap().detach(0).unwrap();
        }
    });
    let code = "import threading, time\n\
        for i in range(99): threading.Thread(target=time.sleep, args=(1000,)).start()\n\
        print('ready')\ntime.sleep(1000)";
    let Some(program) = Program::python(code) else { return };
    let proc = ProcFs::new(std::fs::File::open("/proc").unwrap().into());
    let pid = program.pid();
    per("seize and detach 100 threads, all", 1, || {
        let long = Instant::now() + Duration::from_secs(10);
        let stopped =
            task_list::seize_all(&proc, || Ok(vec![pid]), Options::default(), long, || Ok(())).unwrap();
        assert_eq!(stopped.threads.len(), 100);
    });
}
