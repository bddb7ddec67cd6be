"""From the call to the end of a connection, as its origin sees it: many kills, one after another.

Each kill is of an agent with a live connection to an origin inside this program, so that one
clock sees both the call and the end. Beside it, from the same minute: what a commit (fsync) and a
loopback round trip cost here, which no kill can undercut.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import load
import peers

AGENT = "agent://bench/local/victim"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf of it"
_PATIENCE_S = 10.0


@dataclass
class Ending:
    """One connection at the origin: when it was there, when it ended."""

    began: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    ended_at: float = 0.0


class Origin:
    """Answers every request with the first bytes of a long answer, then waits for the end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.next = Ending()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                ending, self.next = self.next, Ending()
                threading.Thread(target=_watch, args=(connection, ending), daemon=True).start()


def _watch(connection: socket.socket, ending: Ending) -> None:
    with connection:
        try:
            connection.recv(65536)
            connection.sendall(_ANSWER)
            ending.began.set()
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        ending.ended_at = time.perf_counter()
        ending.ended.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tls", choices=("tunnel", "intercept"), default="tunnel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    where = peers.machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haltwire-bench-")))
        ours = stack.enter_context(peers.haltwire(folder / "haltwire", arguments.workers))
        origin = stack.enter_context(contextlib.closing(Origin()))
        proxy_url = ours.token(AGENT + "~v-1", arguments.tls)
        measured = _kill_again_and_again(ours, origin, proxy_url, arguments.kills)
        measured["fsync of 4 KB on this disk"] = _repeat(_fsync(stack, folder), arguments.kills)
        measured["loopback round trip"] = _repeat(_round_trip(stack), arguments.kills)
    _report(where, measured, arguments)


def _kill_again_and_again(
    ours: peers.Haltwire, origin: Origin, proxy_url: str, kills: int
) -> dict[str, list[float]]:
    ends, answers, said = [], [], []
    call = _Api(ours)
    try:
        for number in range(kills):
            ending = origin.next
            with _agent(proxy_url, origin.port):
                if not ending.began.wait(_PATIENCE_S):
                    raise TimeoutError(f"connection {number} never reached the origin")
                start = time.perf_counter()
                receipt = call("kill", {"reason": f"benchmark {number}"})
                answered = time.perf_counter()
                if not ending.ended.wait(_PATIENCE_S):
                    raise TimeoutError(f"kill {number} did not end its connection: {receipt}")
            _check(receipt, number)
            ends.append(ending.ended_at - start)
            answers.append(answered - start)
            said.append(receipt["halted_in_ms"] / 1e3)
            call("resume", {})
    finally:
        call.close()
    return {
        "call to end at the origin": ends,
        "call to answer": answers,
        "halted_in_ms of the receipt": said,
    }


class _Api:
    """Operator's calls over one connection, as a program would make them."""

    def __init__(self, ours: peers.Haltwire) -> None:
        place = urlsplit(ours.control_url)
        self._connection = http.client.HTTPConnection(place.netloc, timeout=_PATIENCE_S)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = {"Authorization": f"Bearer {ours.admin_key}"}
        self._headers["Content-Type"] = "application/json"
        self.close = self._connection.close

    def __call__(self, action: str, body: dict) -> dict:
        path = f"/v1/mesh/{action}"
        text = json.dumps({"selector": AGENT, **body})
        self._connection.request("POST", path, text, self._headers)
        answer = self._connection.getresponse()
        document = json.load(answer)
        if answer.status != 200:
            raise RuntimeError(f"{action}: {answer.status} {document}")
        return document


@contextlib.contextmanager
def _agent(proxy_url: str, port: int):
    """A live connection of the agent, halfway through an answer."""
    way = load.way_from(f"http://127.0.0.1:{port}", proxy_url)
    with socket.create_connection(way.proxy, _PATIENCE_S) as connection:
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        head += f"Proxy-Authorization: {way.authorization}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionRefusedError(answer.split(b"\r\n")[0].decode("latin-1"))
        connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        connection.recv(4096)
        yield


def _check(receipt: dict, number: int) -> None:
    cut = sum(proxy["connections_cut"] or 0 for proxy in receipt["proxies"])
    if not receipt["confirmed"] or cut != 1:
        raise RuntimeError(f"kill {number} is not confirmed or cut {cut} connections: {receipt}")


def _fsync(stack: contextlib.ExitStack, folder: Path) -> Callable[[], None]:
    file = stack.enter_context((folder / "fsync").open("wb", buffering=0))

    def once() -> None:
        file.write(bytes(4096))
        os.fsync(file.fileno())

    return once


def _round_trip(stack: contextlib.ExitStack) -> Callable[[], None]:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    near = stack.enter_context(socket.create_connection(listener.getsockname()))
    far = stack.enter_context(listener.accept()[0])
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def echo() -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(64):
                far.sendall(data)

    threading.Thread(target=echo, daemon=True).start()

    def once() -> None:
        near.sendall(b"x")
        near.recv(64)

    return once


def _repeat(once: Callable[[], None], times: int) -> list[float]:
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        once()
        durations.append(time.perf_counter() - start)
    return durations


def _report(
    where: dict[str, str], measured: dict[str, list[float]], arguments: argparse.Namespace
) -> None:
    print(
        f"{where['cpu']}, {where['system']}, Python {where['python']}, load average {where['load average']} before"
    )
    print(f"{arguments.kills} kills, {arguments.workers} workers, {arguments.tls}; milliseconds\n")
    print(f"{'':<30} {'p50':>8} {'p99':>8} {'max':>8}")
    figures = {}
    for name, seconds in measured.items():
        ordered = sorted(value * 1e3 for value in seconds)
        p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        figures[name] = {"p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}
        print(f"{name:<30} {figures[name]['p50']:>8.3f} {p99:>8.3f} {ordered[-1]:>8.3f}")
    if arguments.json:
        document = {"machine": where, "kills": arguments.kills, "ms": figures}
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
