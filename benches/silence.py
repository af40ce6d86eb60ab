#!/usr/bin/env python3
"""Runs a command on a terminal of its own and prints its longest silences.

    benches/silence.py oddgrad train recipe.toml

For each: its length, when it ended, and what was written before it. With
MESA_SHADER_CACHE_DISABLE=true a software adapter compiles every kernel anew, the slowest start.
"""
import os
import pty
import select
import sys
import time

if len(sys.argv) < 2:
    sys.exit(__doc__)
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
start = last = time.monotonic()
silences, tail = [], b""
while True:
    if not select.select([terminal], [], [], 1)[0]:
        continue
    try:
        data = os.read(terminal, 65536)
    except OSError:  # the other end is closed
        break
    if not data:
        break
    now = time.monotonic()
    silences.append((now - last, now - start, tail))
    last, tail = now, (tail + data)[-60:]
silences.append((time.monotonic() - last, time.monotonic() - start, tail))
for length, end, before in sorted(silences, reverse=True)[:5]:
    print(f"{length:7.2f} s until {end:8.2f} s, after {before!r}")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
