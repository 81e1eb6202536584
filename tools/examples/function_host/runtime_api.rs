//! The Runtime API as AWS documents it ("Using the Lambda runtime API for custom runtimes"), for one runtime at a time, and
//! SnapStart's `/restore/next`. It runs inside the sandbox; the host tells it what to hand out (see [`super::link`]).

use super::http::{Request, Requests, Response};
use super::link::{Invocation, News, OWN, Order, send};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where it listens, inside the sandbox.
pub const ADDRESS: &str = "127.0.0.1:9001";
/// What the function is called, where something asks.
const ARN: &str = "arn:aws:lambda:local:000000000000:function:example";
/// Connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 16;

#[derive(Debug, Default)]
struct State {
    /// Grows with each [`Order::Reset`]: connections of a runtime that is gone get nothing more.
    epoch: u64,
    /// To be handed out.
    next: Option<Invocation>,
    /// Handed out and not answered.
    current: Option<String>,
    restored: bool,
    connections: usize,
}

/// The server.
#[derive(Debug, Default)]
pub struct Server {
    state: Mutex<State>,
    changed: Condvar,
    out: Mutex<()>,
}

/// Serves until standard input ends. With a command, that is the runtime, which is started once the server listens.
///
/// # Errors
/// It cannot listen or start the runtime; an order cannot be understood.
pub fn serve(command: &[String]) -> io::Result<()> {
    let server = Arc::new(Server::default());
    let listener = TcpListener::bind(ADDRESS)?;
    let accepting = server.clone();
    std::thread::spawn(move || accepting.accept(&listener));
    server.tell(&News::Listening);
    if let [program, arguments @ ..] = command {
        let runtime =
            Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let watching = server.clone();
        std::thread::spawn(move || watching.watch(runtime));
    }
    for line in io::stdin().lock().lines() {
        server.obey(serde_json::from_str(&line?)?);
    }
    Ok(())
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the host. One that is gone does not hear it: the sandbox ends soon.
    fn tell(&self, news: &News) {
        let _whole = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = send(&mut io::stdout().lock(), news);
    }

    fn obey(&self, order: Order) {
        let mut state = self.lock();
        match order {
            Order::Invoke(invocation) => state.next = Some(invocation),
            Order::Restored => state.restored = true,
            Order::Reset => {
                *state = State { epoch: state.epoch + 1, connections: state.connections, ..State::default() };
                drop(state);
                self.tell(&News::ResetDone);
            }
        }
        self.changed.notify_all();
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let mut state = self.lock();
            if state.connections == MAX_CONNECTIONS {
                continue;
            }
            state.connections += 1;
            let (server, epoch) = (self.clone(), state.epoch);
            drop(state);
            std::thread::spawn(move || {
                if let Err(e) = server.converse(stream, epoch) {
                    let _ = writeln!(io::stderr(), "Runtime API: {e}");
                }
                server.lock().connections -= 1;
            });
        }
    }

    /// Passes on what the runtime prints, and how it ends.
    fn watch(&self, mut runtime: std::process::Child) {
        if let Some(output) = runtime.stdout.take() {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                self.tell(&News::Log { line });
            }
        }
        if let Ok(status) = runtime.wait() {
            self.tell(&News::Ended { name: OWN.to_owned(), status: status.to_string() });
        }
    }

    fn converse(&self, stream: TcpStream, epoch: u64) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut requests = Requests::new(stream);
        while let Some(request) = requests.next()? {
            let Some(path) = request.path.strip_prefix("/2018-06-01/runtime/") else {
                refuse(&mut requests, 404, "NotFound", &format!("there is no {}", request.path))?;
                continue;
            };
            match (request.method.as_str(), path.split('/').collect::<Vec<_>>().as_slice()) {
                ("GET", ["invocation", "next"]) => match self.next(epoch) {
                    Some(invocation) => hand_out(&mut requests, &invocation)?,
                    None => return Ok(()),
                },
                ("GET", ["restore", "next"]) => {
                    if !self.wait_restored(epoch) {
                        return Ok(());
                    }
                    requests.answer(&Response { status: 200, headers: &[], body: "{}" })?;
                }
                ("POST", ["invocation", id, end @ ("response" | "error")]) => {
                    self.end_of(&mut requests, id, *end == "error", &request)?;
                }
                ("POST", ["init" | "restore", "error"]) => {
                    let (kind, body) = failure(&request);
                    self.tell(&News::InitError { kind, body });
                    accepted(&mut requests)?;
                }
                (method, _) => {
                    let what = format!("there is no {method} {}", request.path);
                    refuse(&mut requests, 404, "NotFound", &what)?;
                }
            }
        }
        Ok(())
    }

    /// Waits for an invocation; `None` when the runtime that asks is taken for gone.
    fn next(&self, epoch: u64) -> Option<Invocation> {
        self.tell(&News::Idle);
        let mut state = self.lock();
        loop {
            if state.epoch != epoch {
                return None;
            }
            if let Some(invocation) = state.next.take() {
                state.current = Some(invocation.id.clone());
                return Some(invocation);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_restored(&self, epoch: u64) -> bool {
        self.tell(&News::ReadyForSnapshot);
        let mut state = self.lock();
        while !state.restored && state.epoch == epoch {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.epoch == epoch
    }

    fn end_of(
        &self,
        requests: &mut Requests<TcpStream>,
        id: &str,
        failed: bool,
        request: &Request,
    ) -> io::Result<()> {
        {
            let mut state = self.lock();
            if state.current.as_deref() != Some(id) {
                drop(state);
                return refuse(requests, 400, "InvalidRequestID", &format!("{id} is not being worked at"));
            }
            state.current = None;
        }
        let id = id.to_owned();
        self.tell(&if failed {
            let (kind, body) = failure(request);
            News::FunctionError { id, kind, body }
        } else {
            News::Response { id, body: text(&request.body) }
        });
        accepted(requests)
    }
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

fn failure(request: &Request) -> (String, String) {
    (request.error_type.clone().unwrap_or_else(|| "Unhandled".to_owned()), text(&request.body))
}

fn hand_out(requests: &mut Requests<TcpStream>, invocation: &Invocation) -> io::Result<()> {
    let deadline = invocation.deadline_ms.to_string();
    let headers = [
        ("Lambda-Runtime-Aws-Request-Id", invocation.id.as_str()),
        ("Lambda-Runtime-Deadline-Ms", &deadline),
        ("Lambda-Runtime-Invoked-Function-Arn", ARN),
        ("Lambda-Runtime-Trace-Id", "Root=1-00000000-000000000000000000000000;Sampled=0"),
    ];
    requests.answer(&Response { status: 200, headers: &headers, body: &invocation.event })
}

fn accepted(requests: &mut Requests<TcpStream>) -> io::Result<()> {
    requests.answer(&Response { status: 202, headers: &[], body: r#"{"status":"OK"}"# })
}

fn refuse(requests: &mut Requests<TcpStream>, status: u16, kind: &str, what: &str) -> io::Result<()> {
    let body = serde_json::json!({ "errorType": kind, "errorMessage": what }).to_string();
    requests.answer(&Response { status, headers: &[], body: &body })
}
