"""What the drivers share: say ready, wait to be asked, verify."""
import hashlib
import os
import signal
import subprocess
import sys
import time

# Before any thread is started, so that the signal waits for whoever asks for it.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
problems = []


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def ready():
    """Says that all is set up; returns when it is to be verified."""
    say("ready")
    while signal.sigwait({signal.SIGUSR1}) != signal.SIGUSR1:
        pass


def same(what, now, before):
    if now != before:
        problems.append(what)
        say(f"{what}: {str(now)[:200]!r}, was {str(before)[:200]!r}")


def expect(what, good):
    if not good:
        problems.append(what)
        say(f"not so: {what}")


def grows(what, value):
    """What goes on by itself goes on."""
    before = value()
    until(f"{what} goes on from {before}", lambda: value() > before)


def until(what, probe):
    end = time.monotonic() + 60
    while True:
        try:
            found = probe()
        except OSError:
            found = None
        if found:
            return found
        if time.monotonic() > end:
            problems.append(what)
            say(f"not so after a minute: {what}")
            return None
        time.sleep(0.005)


def done():
    if not problems:
        say("ok")
    # Whatever else runs ends with this process, the container's first.
    os._exit(1 if problems else 0)


class Blob:
    """Memory that must stay the same."""

    def __init__(self, megabytes):
        self.bytes = bytearray(os.urandom(megabytes << 20))
        self.sum = self.digest()

    def digest(self):
        return hashlib.sha256(self.bytes).hexdigest()

    def verify(self):
        same("memory", self.digest(), self.sum)


def start(*args, **more):
    """A child with pipes to it."""
    return subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, **more)


def ask(child, line):
    """A line to a child, and its answer."""
    child.stdin.write(line + "\n")
    child.stdin.flush()
    return child.stdout.readline().rstrip("\n")
