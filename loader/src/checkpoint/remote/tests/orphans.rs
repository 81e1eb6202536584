//! What becomes of a task when its tracer is killed.

use super::super::*;
use super::*;

const AGENT: &str = "checkpoint::remote::tests::orphans::agent";
const TARGET: &str = "AIRLOCK_TEST_TARGET";

/// Not a test but a tracer to be killed: injects calls into the target all the time.
#[test]
fn agent() {
    let Ok(target) = std::env::var(TARGET) else { return };
    let mut t = Tracee::seize(target.parse().unwrap()).unwrap();
    let region = Region::map(&mut t, None).unwrap();
    println!("ready");
    loop {
        let mut batch = Batch::new();
        for _ in 0..200 {
            batch.must(libc::SYS_getpid, []);
        }
        batch.run(&mut t, &region).unwrap().check().unwrap();
        for _ in 0..5 {
            t.syscall(libc::SYS_getpid, [0; 6]).unwrap().unwrap();
        }
    }
}

/// Lets a tracer work on `pid` and kills it in the middle.
fn with_a_tracer_that_dies(pid: i32, round: u64) {
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", AGENT, "--nocapture"])
        .env(TARGET, pid.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(agent.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the tracer failed");
    }
    // Different moments of its work.
    std::thread::sleep(Duration::from_micros(round * 377 % 5000));
    agent.kill().unwrap();
    agent.wait().unwrap();
    until("nobody traces it", || status(pid, "TracerPid") == "0");
}

#[test]
fn a_computation_survives_the_deaths_of_its_tracers() {
    let Some(mut program) = Program::python(COMPUTATION) else { return };
    for round in 0..20 {
        with_a_tracer_that_dies(program.pid(), round);
    }
    program.signal(libc::SIGTERM);
    assert_eq!(program.line(), "right");
    program.finish();
}

#[test]
fn a_sleeper_survives_the_deaths_of_its_tracers() {
    let program = Program::sleep("1000");
    let mask = status(program.pid(), "SigBlk");
    for round in 0..20 {
        with_a_tracer_that_dies(program.pid(), round);
        until("it sleeps again", || program.state() == 'S');
        assert_eq!(status(program.pid(), "SigBlk"), mask);
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", program.pid())).unwrap();
        let nr: i64 = call.split(' ').next().unwrap().parse().unwrap();
        assert!([libc::SYS_clock_nanosleep, libc::SYS_restart_syscall].contains(&nr), "{call}");
    }
    program.signal(libc::SIGSTOP);
    until("it is stopped", || program.state() == 'T');
    for round in 0..5 {
        with_a_tracer_that_dies(program.pid(), round);
        until("it is stopped again", || program.state() == 'T');
    }
}
