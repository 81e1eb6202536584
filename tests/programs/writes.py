"""Changes its memory at each SIGUSR1, in every way that matters to whoever stores only what changed; says "step N D" then,
and "again N D" at SIGUSR2: D is the digest of its memory and of that of a child, which executes itself anew now and then."""
import ctypes
import hashlib
import mmap
import os
import random
import signal
import sys

PAGE = mmap.PAGESIZE
PAGES = 1024
MADV_DONTNEED = 4


def child(seed, ask, answer):
    memory = mmap.mmap(-1, 64 * PAGE)
    for page in range(64):
        memory[page * PAGE] = (page * 7 + seed) % 256
    while True:
        if seed == 0:
            step = int(os.read(ask, 16))
            # Its address space is another one from then on.
            if step > 0 and step % 2 == 1:
                execute(step, ask, answer)
            if step > 0:
                memory[step % 64 * PAGE + 5] = step % 251 + 1
        seed = 0
        os.write(answer, hashlib.md5(memory).hexdigest().encode())


def execute(seed, ask, answer):
    os.execv(sys.executable, [sys.executable, __file__, str(seed), str(ask), str(answer)])


def change(step):
    for page in random.sample(range(PAGES), 40):
        memory[page * PAGE + 9] = random.randrange(256)
    # Given up, and written again in part.
    at = random.randrange(PAGES - 8)
    assert libc.madvise(ctypes.c_void_p(address + at * PAGE), ctypes.c_size_t(8 * PAGE), MADV_DONTNEED) == 0
    memory[(at + 3) * PAGE] = 1
    # New mappings, and old ones that go.
    others.append(mmap.mmap(-1, 16 * PAGE))
    others[-1][:PAGE] = random.randbytes(PAGE)
    if len(others) > 3:
        others.pop(0).close()
    # The kernel writes too.
    end, begin = os.pipe()
    os.write(begin, bytes([step % 256]) * 100)
    os.readv(end, [memoryview(memory)[77 * PAGE : 77 * PAGE + 100]])
    os.close(end)
    os.close(begin)


def say(what, step, question):
    os.write(tell, b"%d" % question)
    digest = hashlib.md5(os.read(hear, 64))
    for part in [memory, *others]:
        digest.update(part)
    print(what, step, digest.hexdigest(), flush=True)


if len(sys.argv) > 1:
    child(*map(int, sys.argv[1:]))
ask, tell = os.pipe()
hear, answer = os.pipe()
for fd in (ask, answer):
    os.set_inheritable(fd, True)
if os.fork() == 0:
    execute(0, ask, answer)

libc = ctypes.CDLL(None, use_errno=True)
random.seed(1)
memory = mmap.mmap(-1, PAGES * PAGE)
for page in range(0, PAGES, 2):
    memory[page * PAGE : (page + 1) * PAGE] = random.randbytes(PAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
others, step = [], 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
say("step", step, -2)
while True:
    if signal.sigwait([signal.SIGUSR1, signal.SIGUSR2]) == signal.SIGUSR1:
        step += 1
        change(step)
        say("step", step, step)
    else:
        say("again", step, -2)
