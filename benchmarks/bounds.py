"""What no kill can undercut, measured in the same minute: a commit, a round trip, and N resets.

As a program it holds N connections to an origin and resets them all when it is told to, one call
of connect(AF_UNSPEC) after the other, with nothing around it that the loop does not need.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from endings import Origin

_PATIENCE_S = 30.0


def fsync(folder: str, times: int) -> list[float]:
    """4 KB appended and brought to this disk."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

        def once() -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        return _repeat(once, times)


def round_trip(times: int) -> list[float]:
    """One byte there and back over loopback, between two threads."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        near = stack.enter_context(socket.create_connection(listener.getsockname()))
        far = stack.enter_context(listener.accept()[0])
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def echo() -> None:
            with contextlib.suppress(OSError):
                while data := far.recv(64):
                    far.sendall(data)

        def once() -> None:
            near.sendall(b"x")
            near.recv(64)

        threading.Thread(target=echo, daemon=True).start()
        return _repeat(once, times)


def resets(origin: Origin, count: int, times: int) -> dict[str, list[float]]:
    """`count` connections reset by one process: how long its loop takes, and until the last end is seen."""
    loops, ends = [], []
    for _ in range(times):
        command = [sys.executable, __file__, str(origin.port), str(count)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            origin.expect(count)
            process.stdin.write("now\n")
            process.stdin.flush()
            # perf_counter is the same clock in every process here (CLOCK_MONOTONIC).
            began, ended = json.loads(process.stdout.readline())
            last = max(ending.at for ending in origin.endings(_PATIENCE_S))
            loops.append(ended - began)
            ends.append(last - began)
            process.stdin.close()
    return {
        f"{count:,} resets in one process: the loop": loops,
        f"{count:,} resets in one process: last end seen": ends,
    }


def _repeat(once: Callable[[], None], times: int) -> list[float]:
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        once()
        durations.append(time.perf_counter() - start)
    return durations


def _reset_when_told(port: int, count: int) -> None:
    connections = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"GET /bound HTTP/1.1\r\n\r\n")
        connection.recv(4096)
        connections.append(connection)
    print("ready", flush=True)
    connect = ctypes.CDLL(None).connect
    unspecified = struct.pack("H14x", socket.AF_UNSPEC)
    descriptors = [connection.fileno() for connection in connections]
    sys.stdin.readline()
    began = time.perf_counter()
    for fd in descriptors:
        connect(fd, unspecified, 16)
    ended = time.perf_counter()
    print(json.dumps([began, ended]), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    _reset_when_told(*map(int, sys.argv[1:3]))
