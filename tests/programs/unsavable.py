# Opens what no image can carry, and says of each what it is: "N kind", or "no kind: why" where the kernel has none.
import ctypes, os, signal, socket

libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


def call(kind, *args):
    fd = libc.syscall(*args)
    if fd < 0:
        print(f"no {kind}: {os.strerror(ctypes.get_errno())}")
    else:
        print(fd, kind)
    return fd


ring = call("io_uring", 425, 4, ctypes.create_string_buffer(120))
if ring >= 0:
    libc.mmap.restype = ctypes.c_void_p
    if libc.mmap(None, 4096, 3, 1, ring, ctypes.c_long(0)) != ctypes.c_void_p(-1).value:
        print("mapping")
call("userfaultfd", 323, os.O_CLOEXEC)
call("fanotify", 300, 0, os.O_RDONLY)
# A software clock, of this process alone.
attributes = ctypes.create_string_buffer((1).to_bytes(4, "little") + (112).to_bytes(4, "little"), 112)
call("perf_event", 298, attributes, 0, -1, -1, 0)
call("sctp", 41, socket.AF_INET, socket.SOCK_STREAM, 132)
call("vsock", 41, 40, socket.SOCK_STREAM, 0)

# A socket whose other end is outside, and a pipe that comes through it.
outside = socket.socket(socket.AF_UNIX)
outside.connect("/outside/socket")
print(outside.fileno(), "unix")
_, (pipe,), _, _ = socket.recv_fds(outside, 1, 1)
print(pipe, "pipe")

# A process in a user namespace of its own.
at, other = os.pipe()
child = os.fork()
if child == 0:
    os.write(other, b"%d" % libc.unshare(0x10000000))
    signal.pause()
print(child if os.read(at, 9) == b"0" else "no", "namespace")
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])

outside.sendall(b"still there")
print("ok" if outside.recv(100) == os.read(pipe, 100) == b"answer" else "the socket or the pipe is cut off", flush=True)
