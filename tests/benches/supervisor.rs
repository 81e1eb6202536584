//! The supervisor: freeze and thaw of a domain with 50 processes, exec against `containerManager.ExecuteAsync`, events:
//! `cargo bench -p airlock-tests --bench supervisor [freeze|exec|events]` (as root; needs busybox).
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_loader::supervisor::events::Hub;
use airlock_loader::sys::mount;
use airlock_tests::bench::{self, Goal, score};
use airlock_tests::{Bundle, State, unique};
use airlock_wire::api::container_manager::{ExecArgs, ExecuteAsync};
use airlock_wire::api::supervisor::{
    BindMount, Configure, ConfigureRequest, Event, EventData, EventType, Exec, ExecRequest, Freeze,
    FreezeRequest, Mount, Start, StartRequest, Thaw, ThawRequest,
};
use airlock_wire::api::types::Json;
use airlock_wire::{Client, Dialect};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const PROCESSES: usize = 50;
const CYCLES: usize = 101;
const EXECS: usize = 151;
const EVENTS: u64 = 1_000_000;
const ROUNDS: usize = 5;

fn main() {
    bench::run(&[("freeze", freeze), ("exec", exec), ("events", events)]);
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A sandbox with a started domain `d` whose root filesystem is the sandbox's.
struct Host {
    state: State,
    id: String,
    _bundle: Bundle,
}

impl Host {
    fn new() -> Self {
        let bundle = Bundle::new(&["/bin/sleep", "1000000"]);
        let host = Self { state: State::new(), id: unique("bench"), _bundle: bundle };
        host.state.detached(&["run", "--detach", "--bundle", host._bundle.text(), &host.id]);
        let rootfs: OwnedFd =
            mount::open_tree(nix::fcntl::AT_FDCWD, &host._bundle.rootfs(), mount::OPEN_TREE_CLONE).unwrap();
        let root = BindMount { destination: "/".to_owned(), ..BindMount::default() };
        let request = ConfigureRequest {
            domain: "d".to_owned(),
            mounts: vec![Mount::Bind(root)].into(),
            ..Default::default()
        };
        let mut client = host.client();
        client.call::<Configure>(&Json(request), &[rootfs.as_fd()]).unwrap();
        client.call::<Start>(&StartRequest { domain: "d".to_owned() }, &[]).unwrap();
        host
    }

    fn client(&self) -> Client {
        Client::connect(&self.state.control_socket(&self.id), Dialect::Binary).unwrap()
    }
}

fn request(name: &str, args: &[&str]) -> ExecRequest {
    ExecRequest {
        domain: "d".to_owned(),
        name: name.to_owned(),
        path: args[0].to_owned(),
        args: args[1..].iter().map(|a| (*a).to_owned()).collect::<Vec<_>>().into(),
        ..ExecRequest::default()
    }
}

fn freeze() {
    let host = Host::new();
    let mut client = host.client();
    for n in 0..PROCESSES {
        client.call::<Exec>(&Json(request(&format!("p{n}"), &["/bin/sleep", "1000000"])), &[]).unwrap();
    }
    let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
    for _ in 0..CYCLES {
        let begin = Instant::now();
        client.call::<Freeze>(&FreezeRequest { domain: "d".to_owned() }, &[]).unwrap();
        freezes.push(ms(begin.elapsed()));
        let begin = Instant::now();
        client.call::<Thaw>(&ThawRequest { domain: "d".to_owned() }, &[]).unwrap();
        thaws.push(ms(begin.elapsed()));
    }
    println!("\n## Freeze and thaw of {PROCESSES} sleeping processes, medians of {CYCLES}");
    score("Freeze", median(freezes), "ms", Goal::AtMost(3.0));
    score("Thaw", median(thaws), "ms", Goal::AtMost(2.0));
}

/// From the call to the first byte that the program writes: the same program, in the same domain, by two ways.
fn exec() {
    let host = Host::new();
    let mut client = host.client();
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..EXECS {
        let timed = |call: &mut dyn FnMut(OwnedFd)| {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let begin = Instant::now();
            call(writer.into());
            reader.read_exact(&mut [0]).unwrap();
            ms(begin.elapsed())
        };
        ours.push(timed(&mut |out| {
            let request = ExecRequest { stdout: true, ..request(&format!("p{n}"), &["/bin/echo", "x"]) };
            client.call::<Exec>(&Json(request), &[out.as_fd()]).unwrap();
        }));
        theirs.push(timed(&mut |out| {
            let args = ExecArgs {
                container_id: "d".to_owned(),
                argv: ["/bin/echo", "x"].map(str::to_owned).to_vec(),
                working_directory: "/".to_owned(),
                guest_fds: Some(vec![0, 1, 2]),
                ..ExecArgs::default()
            };
            client.call::<ExecuteAsync>(&args, &[null.as_fd(), out.as_fd(), null.as_fd()]).unwrap();
        }));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("\n## Exec to first output, medians of {EXECS}: {ours:.3} ms, ExecuteAsync {theirs:.3} ms");
    score("Exec / ExecuteAsync", ours / theirs, "×", Goal::AtMost(1.3));
}

/// Events go through the loader's own readers to one that decodes each of them; it is told at once if any is lost.
fn events() {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let hub = Hub::default();
        let (reader, writer) = std::io::pipe().unwrap();
        hub.add("d", writer.into()).unwrap();
        let begin = Instant::now();
        let reading = std::thread::spawn(move || {
            let (mut next, mut lost) = (0, 0);
            for line in BufReader::with_capacity(1 << 16, reader).lines() {
                let event: Event = serde_json::from_str(&line.unwrap()).unwrap();
                match event.event.kind {
                    EventType::EventLoss => lost += event.event.size.unwrap(),
                    EventType::ProcessTermination => {
                        assert_eq!(
                            event.event.name.unwrap().parse::<u64>().unwrap(),
                            next + lost,
                            "in order"
                        );
                        next += 1;
                    }
                }
            }
            (next, lost)
        });
        // As fast as the reader can follow, so that none is lost: its queue holds some 6000.
        for n in 0..EVENTS {
            hub.tell("d", || EventData::termination("d", &n.to_string(), 0));
            while n % 1000 == 0 && hub.waiting() > 512 << 10 {
                std::thread::yield_now();
            }
        }
        drop(hub);
        let (told, lost) = reading.join().unwrap();
        assert_eq!((told, lost), (EVENTS, 0), "all were told");
        rates.push(EVENTS as f64 / begin.elapsed().as_secs_f64());
    }
    println!("\n## Events to one reader that decodes them, medians of {ROUNDS} rounds of {EVENTS}");
    score("Events", median(rates), "a second", Goal::AtLeast(200_000.0));
}
