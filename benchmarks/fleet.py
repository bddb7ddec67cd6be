"""A fleet is stopped: one agent of a thousand, then all, while each has live connections.

`haltwire up` as a user starts it, real tokens, connections in the middle of an answer of an origin
inside this program. Every kill must be confirmed and have cut exactly what was live; the agents
beside the killed one must not lose a connection. Beside the figures stands what nothing undercuts.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import bounds
import endings
import figures
import load
import peers
from haltwire_cli.demo_authority import make_authority

GOAL_ONE_MS, GOAL_ALL_MS = 50.0, 1000.0
EVERYONE = "agent://**"
_AGENT = "agent://bench/fleet/a-{:04}"
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Agents with their ways through the proxy, and the origin to which all are connected."""

    operator: peers.Operator
    origin: endings.Origin
    ways: list[load.Way]
    tunnels: int
    "Connections per agent."

    def connect(self, agents: Iterable[int]) -> list[socket.socket]:
        """All connections of these agents, live."""
        return endings.opened(
            (str(agent), self.ways[agent]) for agent in agents for _ in range(self.tunnels)
        )


@dataclass(slots=True)
class Times:
    """Seconds from the calls of one kind of kill."""

    answers: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    said: list[float] = field(default_factory=list)

    def table(self, what: str) -> dict[str, list[float]]:
        """By the names under which they are printed."""
        return {
            f"{what}: call to last end at the origin": self.ends,
            f"{what}: call to answer": self.answers,
            f"{what}: halted_in_ms of the receipt": self.said,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--tunnels", type=int, default=5, help="live connections of each agent")
    parser.add_argument("--kills", type=int, default=50, help="of one agent each")
    parser.add_argument("--rounds", type=int, default=5, help="kills of all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tls", choices=("tunnel", "intercept"), default="tunnel")
    figures.add_json_option(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    live = arguments.agents * arguments.tunnels
    # Both ends of a connection are in this program, and a single worker may have to hold them all.
    if problem := endings.raise_descriptor_limit(2 * live + 500):
        print(problem, file=sys.stderr)
    where = peers.machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haltwire-bench-")))
        fleet = _assembled(stack, folder, arguments)
        one, everyone = Times(), Times()
        with endings.closing(fleet.connect(range(arguments.agents))):
            _kill_one_by_one(fleet, min(arguments.kills, arguments.agents), one)
        for number in range(arguments.rounds):
            fleet.operator.resume(EVERYONE)
            _await(fleet.origin, 0)
            with endings.closing(fleet.connect(range(arguments.agents))):
                _kill_all(fleet, number, everyone)
        bare = stack.enter_context(contextlib.closing(endings.Origin()))
        limits = {
            "fsync of 4 KB on this disk": bounds.fsync(str(folder), 200),
            "loopback round trip": bounds.round_trip(200),
            **bounds.resets(bare, arguments.tunnels, 20),
            **bounds.resets(bare, live, 5),
        }
    _report(where, arguments, one, everyone, limits)


def _assembled(stack: contextlib.ExitStack, folder: Path, arguments: argparse.Namespace) -> Fleet:
    certificates = folder / "origin"
    certificates.mkdir()
    authority = make_authority(certificates)
    inside, outside = None, None
    if arguments.tls == "intercept":
        inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        inside.load_cert_chain(authority.certificate_file)
    ours = stack.enter_context(
        peers.haltwire(folder / "haltwire", arguments.workers, str(authority.ca_file))
    )
    if arguments.tls == "intercept":
        outside = ssl.create_default_context(cafile=ours.ca_file)
    origin = stack.enter_context(contextlib.closing(endings.Origin(inside)))
    operator = stack.enter_context(contextlib.closing(peers.Operator(ours)))
    ways = []
    for agent in range(arguments.agents):
        proxy_url = operator.token(_AGENT.format(agent) + "~1", arguments.tls)
        way = load.way_from(f"http://127.0.0.1:{origin.port}", proxy_url)
        ways.append(replace(way, tls=outside))
    return Fleet(operator, origin, ways, arguments.tunnels)


def _kill_one_by_one(fleet: Fleet, kills: int, times: Times) -> None:
    live = fleet.origin.live
    step = max(1, len(fleet.ways) // kills)
    for number, agent in enumerate(range(0, kills * step, step), 1):
        _kill(fleet, _AGENT.format(agent), fleet.tunnels, times, {str(agent)})
        if fleet.origin.live != live - number * fleet.tunnels:
            raise RuntimeError(f"kill {number} ended connections of other agents")


def _kill_all(fleet: Fleet, number: int, times: Times) -> None:
    everyone = {str(agent) for agent in range(len(fleet.ways))}
    _kill(fleet, EVERYONE, len(fleet.ways) * fleet.tunnels, times, everyone)
    print(f"all stopped, round {number + 1}: {times.ends[-1] * 1e3:.0f} ms", file=sys.stderr)


def _kill(fleet: Fleet, selector: str, live: int, times: Times, names: set[str]) -> None:
    fleet.origin.expect(live)
    start = time.perf_counter()
    receipt = fleet.operator.kill(selector, "benchmark", live)
    ended = fleet.origin.endings(_PATIENCE_S)
    if {ending.name for ending in ended} != names:
        raise RuntimeError(f"the kill of {selector} ended connections of other agents")
    times.ends.append(max(ending.at for ending in ended) - start)
    times.answers.append(fleet.operator.answered_at - start)
    times.said.append(receipt["halted_in_ms"] / 1e3)


def _await(origin: endings.Origin, live: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while origin.live != live:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{origin.live} connections live, not {live}")
        time.sleep(0.01)


def _report(
    where: dict[str, str],
    arguments: argparse.Namespace,
    one: Times,
    everyone: Times,
    limits: dict[str, list[float]],
) -> None:
    figures.print_machine(where)
    live = arguments.agents * arguments.tunnels
    title = f"{live:,} live, {arguments.tls}, {arguments.workers} workers; ms"
    document = figures.show(title, one.table("one agent") | everyone.table("all"))
    document |= figures.show("what nothing can undercut; ms", limits)
    print()
    for what, times, goal in (("one agent", one, GOAL_ONE_MS), ("all", everyone, GOAL_ALL_MS)):
        worst = figures.row([max(pair) for pair in zip(times.answers, times.ends, strict=True)])
        figures.judge(f"{what}, p99 of the later of answer and last end", worst["p99"], goal)
    figures.write(arguments.json, {"machine": where, "live": live, "ms": document})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
