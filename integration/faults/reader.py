"""Reads files with known checksums for a while, in a container, and tells what went wrong.

    reader.py NUMBER READERS SECONDS

Each of several readers has files of its own. Files that nobody has read are spread over the time;
in between it reads again what it has read, without what the kernel has cached. Prints one JSON object:
reads, files, failed, wrong, and slow: when reads began and ended that took long, in milliseconds.
"""
import hashlib
import json
import os
import random
import sys
import time

SLOW = 0.05
PAUSE = 0.01
PIECE = 131072

number, readers, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
sums = [line.split() for line in open("/data/sums")]
unread = sums[number::readers]
random.shuffle(unread)
seen = []
result = {"reads": 0, "files": 0, "failed": 0, "wrong": 0, "slow": []}


def timed(call):
    began = time.time()
    try:
        return call()
    finally:
        ended = time.time()
        result["reads"] += 1
        if ended - began > SLOW:
            result["slow"].append([began * 1000, ended * 1000])


def check(expected, name):
    result["files"] += 1
    digest = hashlib.sha256()
    try:
        file = timed(lambda: os.open(name, os.O_RDONLY))
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            while True:
                piece = timed(lambda: os.read(file, PIECE))
                if not piece:
                    break
                digest.update(piece)
        finally:
            os.close(file)
    except OSError as error:
        print(name, error, file=sys.stderr)
        result["failed"] += 1
        return
    if digest.hexdigest() != expected:
        result["wrong"] += 1


began = time.monotonic()
total = len(unread)
while time.monotonic() < began + seconds:
    due = (time.monotonic() - began) / seconds * total
    if unread and (not seen or total - len(unread) <= due):
        seen.append(unread.pop())
        check(*seen[-1])
    else:
        check(*random.choice(seen))
    time.sleep(PAUSE)
print(json.dumps(result))
