"""stress-ng at work, which verifies what it does. Arguments: its stressors."""
import os
import signal
import subprocess
import sys

from driver import done, expect, ready, same, until

with open("/data/output", "wb") as out:
    stress = subprocess.Popen(
        ["stress-ng", "--verify", "--timeout", "0", "--temp-path", "/data", *sys.argv[1:]], stdout=out, stderr=out, cwd="/data",
    )


def times():
    """Time used by all that is there, in ticks."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(fields[11]) + int(fields[12])
    return total


def output():
    with open("/data/output") as file:
        return file.read()


until("it is at work", lambda: times() > 50 or stress.poll() is not None)
same("its beginning: " + output(), stress.poll(), None)
ready()

same("its end", stress.poll(), None)
before = times()
until("it goes on", lambda: times() > before + 20)
stress.send_signal(signal.SIGINT)
same("how it ends", stress.wait(), 0)
text = output()
expect("nothing failed: " + text, "fail:" not in text and "error:" not in text and "successful run completed" in text)
done()
