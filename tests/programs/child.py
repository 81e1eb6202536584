"""A program with pipes to it: says `ready`, is told to verify, says `ok`. Arguments: the program and its own."""
import sys

from driver import ask, done, ready, same, start

child = start(*sys.argv[1:])
same("its first word", child.stdout.readline(), "ready\n")
ready()
same("its last word", ask(child, "verify"), "ok")
same("its end", child.wait(), 0)
done()
