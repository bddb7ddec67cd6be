"""Kills while another agent saturates inspection: how late they are, and whether a lease is lost.

The busy agent's traffic is read inside TLS: requests over kept connections, new TLS to hosts that
mitmproxy has no certificate for, and downloads, each in a closed loop, so that every worker has
more to do than it can. The victim has a tunnel and an intercepted stream with bytes on the move;
so has a bystander, who must lose neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bounds
import endings
import figures
import load
import peers
from haltwire_cli.demo_authority import make_authority

GOAL_MS = 100.0
_BUSY = "agent://bench/local/busy~b-1"
_VICTIM = "agent://bench/local/victim"
_BYSTANDER = "agent://bench/local/bystander"
_BYSTANDERS = 8
"Tunnels, and as many streams: enough for each worker to have some."
_TICK_S = 0.05
_WARM_UP_S = 1.0
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Site:
    """What is started once: two origins, and the ways of victim and bystander to them."""

    operator: peers.Operator
    origins: tuple[endings.Origin, endings.Origin]
    "Plain, for tunnels; TLS, for intercepted streams."
    victim: tuple[load.Way, load.Way]
    bystander: tuple[load.Way, load.Way]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--requests", type=int, default=64, metavar="N", help="kept connections")
    parser.add_argument("--handshakes", type=int, default=32, metavar="N", help="loops of new TLS")
    parser.add_argument("--download", type=int, default=8, metavar="N", help="downloads at once")
    figures.add_json_option(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    endings.raise_descriptor_limit(20_000)
    where = peers.machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haltwire-bench-")))
        ports = stack.enter_context(peers.origin(folder / "busy-origin"))
        ours, site = _assembled(stack, folder, arguments, Path(ports["ca_file"]))
        bystanders = endings.opened(
            (f"bystander-{kind}", way)
            for kind, way in enumerate(site.bystander)
            for _ in range(_BYSTANDERS)
        )
        stack.enter_context(endings.closing(bystanders))
        stack.enter_context(_ticking(site.origins))
        idle = _kill_again_and_again(site, max(20, arguments.kills // 4))
        proxy_url = ours.token(_BUSY, "intercept")
        with _busy(folder, arguments, proxy_url, ports, ours.ca_file) as loads:
            time.sleep(_WARM_UP_S)
            cpu, start = ours.process.cpu_s(), time.perf_counter()
            loaded = _kill_again_and_again(site, arguments.kills)
            cores = (ours.process.cpu_s() - cpu) / (time.perf_counter() - start)
            samples = {kind: _ended(process) for kind, process in loads.items()}
        interrupted = 2 * _BYSTANDERS - sum(origin.live for origin in site.origins)
        complaints = ours.log.read_text().splitlines()
        limits = {
            "fsync of 4 KB on this disk": bounds.fsync(str(folder), 200),
            "loopback round trip": bounds.round_trip(200),
        }
    _report(where, arguments, idle, loaded, limits)
    for kind, sample in samples.items():
        print(f"{kind}: {sample.rate:,.0f}/s, p99 {sample.p99_us / 1e3:,.0f} ms, {sample.errors} errors")  # fmt: skip
    lost = sum("lease lost" in line for line in complaints)
    print(f"haltwire used {cores:.1f} cores; leases lost: {lost}; connections of the bystander lost: {interrupted} of {2 * _BYSTANDERS}")  # fmt: skip
    for line in complaints[:20]:
        print(f"    {line}")


def _assembled(
    stack: contextlib.ExitStack, folder: Path, arguments: argparse.Namespace, busy_ca: Path
) -> tuple[peers.Haltwire, Site]:
    certificates = folder / "origin"
    certificates.mkdir()
    authority = make_authority(certificates)
    roots = certificates / "roots.pem"
    roots.write_bytes(authority.ca_file.read_bytes() + busy_ca.read_bytes())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.certificate_file)
    ours = stack.enter_context(peers.haltwire(folder / "haltwire", arguments.workers, str(roots)))
    client = ssl.create_default_context(cafile=ours.ca_file)
    plain = stack.enter_context(contextlib.closing(endings.Origin()))
    secure = stack.enter_context(contextlib.closing(endings.Origin(server)))
    operator = stack.enter_context(contextlib.closing(peers.Operator(ours)))

    def ways(agent: str) -> tuple[load.Way, load.Way]:
        tunnel, stream = (operator.token(f"{agent}~{tls}", tls) for tls in ("tunnel", "intercept"))
        return (
            load.way_from(f"http://127.0.0.1:{plain.port}", tunnel),
            replace(load.way_from(f"http://127.0.0.1:{secure.port}", stream), tls=client),
        )

    return ours, Site(operator, (plain, secure), ways(_VICTIM), ways(_BYSTANDER))


@contextlib.contextmanager
def _ticking(origins: tuple[endings.Origin, ...]) -> Iterator[None]:
    """Bytes move on every live connection."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(_TICK_S):
            for origin in origins:
                origin.tick()

    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


@contextlib.contextmanager
def _busy(
    folder: Path, arguments: argparse.Namespace, proxy_url: str, ports: dict, ca_file: str
) -> Iterator[dict[str, peers.Process]]:
    """The saturating agent: a load generator for each kind of load."""
    url = f"https://127.0.0.1:{ports['https']}/"
    with contextlib.ExitStack() as stack:
        loads = {}
        for kind in ("requests", "handshakes", "download"):
            if connections := getattr(arguments, kind):
                command = [sys.executable, str(peers.HERE / "load.py"), kind, url]
                command += ["--proxy", proxy_url, "--ca", ca_file, "--seconds", "3600"]
                command += ["--connections", str(connections)]
                log = folder / f"{kind}.log"
                loads[kind] = stack.enter_context(peers.started(kind, command, log))
                _await_clock(kind, log)
        yield loads


def _await_clock(kind: str, log: Path) -> None:
    deadline = time.monotonic() + 2 * _PATIENCE_S
    while load.CLOCK not in log.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the load generator for {kind} did not begin:\n{log.read_text()}")
        time.sleep(0.05)


def _ended(process: peers.Process) -> load.Sample:
    """Stop a load generator; what it has counted."""
    process.guard.stdin.close()
    line = process.guard.stdout.read()
    if not line:
        raise RuntimeError(f"the load generator for {process.name} did not say what it did")
    document = json.loads(line)
    del document["rate"]
    return load.Sample(**document)


def _kill_again_and_again(site: Site, kills: int) -> dict[str, list[float]]:
    ends, answers, said = [], [], []
    for number in range(kills):
        with endings.closing(endings.opened([("victim", way) for way in site.victim])):
            for origin in site.origins:
                origin.expect(1)
            start = time.perf_counter()
            receipt = site.operator.kill(_VICTIM, f"benchmark {number}", 2)
            ended = [one for origin in site.origins for one in origin.endings(_PATIENCE_S)]
        if [one.name for one in ended] != ["victim", "victim"]:
            raise RuntimeError(f"kill {number} ended others: {ended}")
        ends.append(max(one.at for one in ended) - start)
        answers.append(site.operator.answered_at - start)
        said.append(receipt["halted_in_ms"] / 1e3)
        site.operator.resume(_VICTIM)
    return {
        "call to last end at the origin": ends,
        "call to answer": answers,
        "halted_in_ms of the receipt": said,
    }


def _report(
    where: dict[str, str],
    arguments: argparse.Namespace,
    idle: dict[str, list[float]],
    loaded: dict[str, list[float]],
    limits: dict[str, list[float]],
) -> None:
    figures.print_machine(where)
    document = {
        "idle": figures.show(f"nothing else to do, {arguments.workers} workers; ms", idle),
        "saturated": figures.show("while another agent saturates inspection; ms", loaded),
        "limits": figures.show("what nothing can undercut; ms", limits),
    }
    print()
    worst = figures.row(loaded["call to last end at the origin"])
    figures.judge("saturated, p99 of call to last end", worst["p99"], GOAL_MS)
    figures.write(arguments.json, {"machine": where, "ms": document})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
