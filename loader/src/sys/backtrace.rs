//! Call stacks of the loader's own threads, taken by a signal handler in each of them.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Frames kept of one stack.
pub const MAX_FRAMES: usize = 64;

static FRAMES: [AtomicUsize; MAX_FRAMES] = [const { AtomicUsize::new(0) }; MAX_FRAMES];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Thread that is asked; it answers by storing 0.
static ASKED: AtomicI32 = AtomicI32::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

type UnwindCallback = extern "C" fn(*mut libc::c_void, *mut libc::c_void) -> libc::c_int;

unsafe extern "C" {
    fn _Unwind_Backtrace(callback: UnwindCallback, argument: *mut libc::c_void) -> libc::c_int;
    fn _Unwind_GetIP(context: *mut libc::c_void) -> usize;
}

/// A signal that the loader, which has no terminal, never gets and does not pass on to its container.
const SIGNAL: i32 = libc::SIGTTOU;

extern "C" fn on_frame(context: *mut libc::c_void, _: *mut libc::c_void) -> libc::c_int {
    const NO_REASON: libc::c_int = 0;
    const END_OF_STACK: libc::c_int = 5;
    let n = COUNT.load(Ordering::Relaxed);
    if n >= MAX_FRAMES {
        return END_OF_STACK;
    }
    // SAFETY: the unwinder passes a valid context.
    FRAMES[n].store(unsafe { _Unwind_GetIP(context) }, Ordering::Relaxed);
    COUNT.store(n + 1, Ordering::Relaxed);
    NO_REASON
}

extern "C" fn on_signal(_: libc::c_int) {
    if ASKED.load(Ordering::Acquire) != super::misc::gettid() {
        return;
    }
    COUNT.store(0, Ordering::Relaxed);
    // SAFETY: finding unwind tables takes no locks since glibc 2.35 and gcc 12; on older ones this could wait for
    // a dlopen in the same thread, and the loader opens no libraries.
    unsafe { _Unwind_Backtrace(on_frame, std::ptr::null_mut()) };
    ASKED.store(0, Ordering::Release);
}

/// A stack on its way into a slice.
struct Into<'a> {
    frames: &'a mut [usize],
    count: usize,
}

extern "C" fn on_own_frame(context: *mut libc::c_void, into: *mut libc::c_void) -> libc::c_int {
    const NO_REASON: libc::c_int = 0;
    const END_OF_STACK: libc::c_int = 5;
    // SAFETY: `here` passes its own `Into`, which outlives the walk and which nothing else refers to meanwhile.
    let into = unsafe { &mut *into.cast::<Into<'_>>() };
    match into.frames.get_mut(into.count) {
        Some(frame) => {
            // SAFETY: the unwinder passes a valid context.
            *frame = unsafe { _Unwind_GetIP(context) };
            into.count += 1;
            NO_REASON
        }
        None => END_OF_STACK,
    }
}

/// Return addresses of the calling thread, innermost (this function) first; how many there are. Allocates nothing.
pub fn here(frames: &mut [usize]) -> usize {
    let mut into = Into { frames, count: 0 };
    // SAFETY: the callback gets the `Into` that it expects.
    unsafe { _Unwind_Backtrace(on_own_frame, (&raw mut into).cast()) };
    into.count
}

/// Lets the calling thread, and those it will make, answer [`of_thread`]. Call once, before other threads exist.
pub fn enable() {
    // SAFETY: the handler only uses atomics and the unwinder.
    unsafe { handle(SIGNAL, on_signal) };
}

/// Has `handler` called for a signal, and lets the calling thread, and those it will make, get it. Calls that it interrupts go on.
///
/// # Safety
/// The handler may do only what a handler may (signal-safety(7)).
pub(super) unsafe fn handle(signal: i32, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the structures are initialised before use; the caller vouches for the handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Return addresses of thread `tid` of this process, innermost first; empty when it does not answer within a second.
pub fn of_thread(tid: i32) -> Vec<usize> {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    ASKED.store(tid, Ordering::Release);
    // SAFETY: tgkill takes integers; the signal has a handler since `enable`.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, SIGNAL) };
    let deadline = Instant::now() + Duration::from_secs(1);
    while sent == 0 && ASKED.load(Ordering::Acquire) != 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    if ASKED.swap(0, Ordering::AcqRel) != 0 || sent != 0 {
        return Vec::new();
    }
    let count = COUNT.load(Ordering::Relaxed).min(MAX_FRAMES);
    FRAMES[..count].iter().map(|f| f.load(Ordering::Relaxed)).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn another_threads_stack_is_seen() {
        super::enable();
        let (send, receive) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(crate::sys::misc::gettid()).unwrap();
            let _ = stopped.recv();
        });
        let frames = super::of_thread(receive.recv().unwrap());
        assert!(frames.len() > 2, "{frames:?}");
        drop(stop);
        thread.join().unwrap();
    }
}
