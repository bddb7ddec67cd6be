"""Ten minutes at a steady rate: does anything grow? Descriptors, threads, tasks and memory of every process.

`haltwire up` as a user starts it, with what wears it out: new connections and kept ones, in the open,
through tunnels and read inside TLS; agents that are stopped and resumed; instances that come and go,
each with a name of its own; unknown strangers. After a warm-up a straight line is laid through each
process's figures. A line that rises by more than its scatter and more than `MOST` allows is a leak: exit 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import signal
import ssl
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import endings
import figures
import load
import peers

WARM_UP = 0.5
"""The part of the time that is not judged: allocators and caches fill once, and for five minutes the control
server follows the instances of each resume, so that their receipts are in its memory, too."""
FILLED_WITH = 500
"""Kills and resumes of nobody before all else. SQLite keeps 2 MB of each file's pages; at the rate of this
program the first eight minutes would go into filling that, at 0.4 MB a minute, which hides any leak."""
LOOK_S = 2.0
RATE = 40.0
"Connections a second, over all kinds."
AGENTS = 8
NOBODY = "agent://soak/fill/nobody"
MOST = {"fds": 2.0, "threads": 0.5, "rss_mb": 3.0}
"What a line may rise by from the end of the warm-up to the end, in units of each figure."
PER_TEN_MINUTES = {"rss_mb": 6.0}
"""And per ten minutes, where it is a rate that is judged: what is remembered to a bound is no leak. Measured at
39 kills a minute after five minutes: 4.3 MB. Some 1.6 KB are kept of each of 10,000 lifted orders, 14 KB of a
resume that is followed, 1 KB of each instance for a day; the rest of the rate is not told apart here."""
SIGNIFICANT = 4.0
"A slope is one when it is so many times its standard error."
_PATIENCE_S = 10.0


@dataclass(slots=True)
class Track:
    """One figure of one process over time."""

    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def slope(self) -> tuple[float, float]:
        """Units per second, and its standard error."""
        if len(self.at) < 3:
            return 0.0, 0.0
        line = statistics.linear_regression(self.at, self.values)
        middle = statistics.fmean(self.at)
        spread = sum((x - middle) ** 2 for x in self.at)
        rest = sum(
            (y - line.intercept - line.slope * x) ** 2
            for x, y in zip(self.at, self.values, strict=True)
        )
        return line.slope, (rest / (len(self.at) - 2) / spread) ** 0.5

    def grows(self, name: str) -> bool:
        """Whether the line rises by more than may be, and more surely than chance would have it."""
        slope, error = self.slope()
        seconds = self.at[-1] - self.at[0] if self.at else 0.0
        rate = PER_TEN_MINUTES.get(name)
        most = MOST[name] if rate is None else max(MOST[name], rate * seconds / 600)
        return slope * seconds > most and slope > SIGNIFICANT * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=RATE, help="connections a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--named", type=int, default=101, metavar="N", help="every Nth as a new instance; 0: none"
    )
    figures.add_json_option(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    endings.raise_descriptor_limit(8192)
    where = peers.machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haltwire-soak-")))
        ports = stack.enter_context(peers.origin(folder / "origin"))
        ours = stack.enter_context(
            peers.haltwire(folder / "haltwire", arguments.workers, ports["ca_file"])
        )
        _fill(ours)
        processes = _processes(ours.process.guard.pid)
        counts, tracks = asyncio.run(_soak(ours, ports, processes, arguments))
        scraped = _scrape(ours)
        ended = [name for name, pid in processes.items() if not Path(f"/proc/{pid}").exists()]
    figures.print_machine(where)
    print("done:", ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())))
    print(
        "at the end:", ", ".join(f"{k.removeprefix('haltwire_')} {v:g}" for k, v in scraped.items())
    )
    document, grew = _judged(tracks)
    figures.write(arguments.json, {"machine": where, "counts": counts, "slopes": document})
    if ended:
        print(f"ended meanwhile: {', '.join(ended)}")
    print("verdict:", f"{', '.join(grew)} grew" if grew else "nothing grew")
    sys.exit(bool(grew or ended))


def _fill(ours: peers.Haltwire) -> None:
    operator = peers.Operator(ours)
    for _ in range(FILLED_WITH):
        operator("/v1/mesh/kill", {"selector": NOBODY})
        operator("/v1/mesh/resume", {"selector": NOBODY})
    operator.close()


async def _soak(
    ours: peers.Haltwire, ports: dict, processes: dict[str, int], arguments: argparse.Namespace
) -> tuple[Counter[str], dict[tuple[str, str], Track]]:
    counts: Counter[str] = Counter()
    inside = ssl.create_default_context(cafile=ours.ca_file)
    outside = ssl.create_default_context(cafile=ports["ca_file"])
    plain, secure = (f"{kind}://127.0.0.1:{ports[kind]}" for kind in ("http", "https"))
    tokens = [
        {
            kind: ours.token(f"agent://soak/{kind}/a{number}", kind)
            for kind in ("tunnel", "intercept")
        }
        for number in range(AGENTS)
    ]
    numbers = itertools.count()

    async def one() -> None:
        """One connection of one kind, with a few requests, under an instance name of its own at times."""
        number = next(numbers)
        kind = ("tunnel", "tls", "read", "open", "stranger")[number % 5]
        intercept = kind in ("read", "open")
        url = tokens[number // 5 % AGENTS]["intercept" if intercept else "tunnel"]
        if kind == "stranger":
            url = re.sub(r"hwa_.", "hwa_~", url)
        elif arguments.named and number % arguments.named == 0:
            url = re.sub(r"//([^:]+):", rf"//\1~i{number}:", url)
        way = load.way_from(secure if kind in ("tls", "read") else plain, url)
        tls = {"tls": outside, "read": inside}.get(kind)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answered = await _walk(replace(way, tls=tls), kind, number)
            counts[f"{kind} {answered}"] += 1
        except TimeoutError:
            counts[f"{kind} TOO LATE"] += 1
        except (OSError, EOFError):
            counts[f"{kind} closed"] += 1

    async def churn() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(one())
                due += 1 / arguments.rate
                await asyncio.sleep(due - loop.time())

    async def stop_and_resume() -> None:
        for number in itertools.count():
            agent = f"agent://soak/{('tunnel', 'intercept')[number % 2]}/a{number // 2 % AGENTS}"
            mode = ("cut", "hold")[number % 5 == 4]
            await asyncio.to_thread(
                ours.call, "POST", "/v1/mesh/kill", {"selector": agent, "mode": mode}
            )
            await asyncio.sleep(0.3)
            await asyncio.to_thread(ours.call, "POST", "/v1/mesh/resume", {"selector": agent})
            counts["kills"] += 1
            await asyncio.sleep(0.2)

    tracks: dict[tuple[str, str], Track] = {}
    began = time.monotonic()
    first = began + arguments.seconds * WARM_UP

    async def look() -> None:
        while True:
            now = time.monotonic()
            if now >= first:
                for name, pid in processes.items():
                    with contextlib.suppress(OSError):
                        for figure, value in _figures(pid).items():
                            track = tracks.setdefault((name, figure), Track())
                            track.at.append(now - began)
                            track.values.append(value)
            await asyncio.sleep(LOOK_S)

    works: tuple[Callable[[], Awaitable[None]], ...] = (churn, stop_and_resume, look)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(arguments.seconds), asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work())
    return counts, tracks


async def _walk(way: load.Way, kind: str, number: int) -> str:
    """Connect, ask a few times, and go: politely or not. The last status."""
    reader, writer = await asyncio.open_connection(*way.proxy)
    place = f"{way.host}:{way.port}"
    credentials = f"Proxy-Authorization: {way.authorization}\r\n"
    try:
        status, base = "200", ""
        if kind == "open":
            base = f"http://{place}"
        else:
            writer.write(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{credentials}\r\n".encode())
            status = await _status(reader, body=False)
            credentials = ""
            if status == "200" and way.tls:
                await writer.start_tls(way.tls, server_hostname=way.host)
        for _ in range(number % 7):
            if status != "200":
                break
            writer.write(f"GET {base}/ HTTP/1.1\r\nHost: {place}\r\n{credentials}\r\n".encode())
            status = await _status(reader)
            await asyncio.sleep(0.05)
        return status
    finally:
        if number % 3:
            writer.transport.abort()
        else:
            writer.close()


async def _status(reader: asyncio.StreamReader, *, body: bool = True) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    status = head.split(b" ", 2)[1].decode()
    if length and (body or status != "200"):
        await reader.readexactly(int(length[1]))
    return status


def _processes(guard: int) -> dict[str, int]:
    """Name and pid of everything that `up` has started, itself among it."""
    (supervisor,) = _children(guard)
    found, workers = {"supervisor": supervisor}, itertools.count(1)
    for pid in _children(supervisor):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"control" in command:
            found["control"] = pid
        elif b"proxy" in command:
            found[f"worker {next(workers)}"] = pid
    return found


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _figures(pid: int) -> dict[str, float]:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return {
        "fds": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
    }


def _scrape(ours: peers.Haltwire) -> dict[str, float]:
    """What /metrics says of things that live, once the churn has ended."""
    time.sleep(3.0)
    with urllib.request.urlopen(ours.control_url + "/metrics", timeout=_PATIENCE_S) as answer:
        text = answer.read().decode()
    wanted = ("connections", "orders_in_force", "leases_lost_total", "proxies_lost_total")
    return {
        name: float(value)
        for name, value in re.findall(r"^(haltwire_\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
        if name.removeprefix("haltwire_") in wanted
    }


def _judged(tracks: dict[tuple[str, str], Track]) -> tuple[dict[str, dict[str, float]], list[str]]:
    print(f"\n{'':<22} {'first':>9} {'last':>9} {'per min':>9} {'+-':>7}")
    document, grew = {}, []
    for (process, name), track in sorted(tracks.items()):
        slope, error = track.slope()
        grows = track.grows(name)
        title = f"{process} {name}"
        print(
            f"{title:<22} {track.values[0]:>9.1f} {track.values[-1]:>9.1f} {slope * 60:>9.2f} "
            f"{error * 60:>7.2f} {'GROWS' if grows else ''}".rstrip()
        )
        document[title] = {"first": track.values[0], "last": track.values[-1]}
        document[title] |= {"per_minute": slope * 60, "error": error * 60}
        if grows:
            grew.append(title)
    return document, grew


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
