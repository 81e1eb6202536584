"""Memory that must stay the same, and children that see it: as many as are asked for."""
import os
import sys

from driver import Blob, done, expect, ready, same

blob = Blob(64)
ready()
for n in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        # Every other one looks at a page that nobody may have touched yet.
        os._exit(n % 2 == 1 and blob.bytes[(n * 65536) % len(blob.bytes)] > 255)
    same("how a child ended", os.waitpid(child, 0)[1], 0)
expect("memory as it was made", len(blob.bytes) == 64 << 20)
blob.verify()
done()
