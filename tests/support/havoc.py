"""Operators who stop and resume, and everything that can go wrong meanwhile, at random from one seed.

A call is never given up: a resume that nobody waits for any more may still be carried out after the
next kill, and nobody could tell whose fault that is. A call ends with an answer, or with the process
that had it; then it is made again, as a person would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from support.faultproxy import DOWN, UP, FaultProxy
from support.invariant import Checker, moment_of
from support.numbered import Agent
from support.up_through import FaultySystem

KILLED_AT_MOST_EVERY_S = 8.0
"A child that dies sooner is started again with a growing delay: then nothing but waiting is tested."
GIVEN_UP_S = 60.0
"No fault lasts so long that an answer may take this."


@dataclass
class Journal:
    """What has been done, for whoever looks for the cause of a violation."""

    began: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, text: str = "") -> None:
        """Count it, and keep it with its time."""
        self.counts[kind] += 1
        self.lines.append(f"{time.monotonic():.3f} {kind} {text}".rstrip())


class Operator:
    """Stops and resumes one group of agents, one call after the other."""

    def __init__(
        self,
        system: FaultySystem,
        group: str,
        agents: list[Agent],
        checker: Checker,
        journal: Journal,
        chance: random.Random,
    ) -> None:
        self._system = system
        self._checker, self._journal, self._chance = checker, journal, chance
        self._everyone = f"agent://acme/{group}/*"
        self._agents = {agent.uri: [agent.name] for agent in agents}
        self._agents[self._everyone] = [agent.name for agent in agents]
        self.in_force: dict[str, str] = {}
        "Orders that have been answered and not been resumed: their selectors by kill id."
        self._pending: set[str] = set()
        self._leaving = False

    async def work(self) -> None:
        """Stop and resume at random, until `leave`."""
        async with asyncio.TaskGroup() as tasks:
            completing = tasks.create_task(self._complete())
            while not self._leaving:
                await asyncio.sleep(self._chance.uniform(0.0, 0.7))
                if self._chance.random() < 0.6 and len(self.in_force) <= len(self._agents) // 2:
                    await self._kill()
                elif self.in_force:
                    await self._resume()
            completing.cancel()

    def leave(self) -> None:
        """No call after the one that is under way; that one's answer is waited for."""
        self._leaving = True

    async def resume_all(self) -> None:
        """Lift everything."""
        self._checker.resuming(self.in_force, time.monotonic())
        self.in_force.clear()
        self._pending.clear()
        await self.call("POST", "/v1/mesh/resume", {"selector": self._everyone})

    async def call(self, method: str, path: str, body: dict | None = None) -> dict:
        """The answer to one call, made again as often as its connection breaks."""
        while True:
            try:
                async with (
                    asyncio.timeout(GIVEN_UP_S),
                    aiohttp.ClientSession(
                        trust_env=False, connector=aiohttp.TCPConnector(force_close=True)
                    ) as session,
                    session.request(
                        method,
                        self._system.control_url + path,
                        json=body,
                        headers={"Authorization": f"Bearer {self._system.key}"},
                        timeout=aiohttp.ClientTimeout(total=None),
                    ) as answer,
                ):
                    document = await answer.json()
                    if answer.status == 200:
                        return document
                    self._journal.note(f"answered {answer.status}", f"{method} {path} {document}")
            except TimeoutError as error:
                told = "; ".join(self._journal.lines[-30:])
                state = _states(self._system.process.pid)
                raise AssertionError(f"{method} {path}: no answer. {state}. {told}") from error
            except (aiohttp.ClientError, ConnectionError) as error:
                self._journal.note("call broken", f"{method} {path} {type(error).__name__}")
            await asyncio.sleep(0.2)

    async def _kill(self) -> None:
        selector = self._chance.choice(list(self._agents))
        mode = self._chance.choices(("cut", "hold", "drain"), (7, 2, 1))[0]
        body: dict = {"selector": selector, "mode": mode, "reason": "havoc"}
        if mode == "drain":
            body["grace_s"] = self._chance.choice((0.5, 2))
        if self._chance.random() < 0.3:
            body["wait_s"] = self._chance.choice((0, 0.1, 5))
        at = time.monotonic()
        if mode == "drain":
            # The same order as a drain: what a hold has frozen may go on until its grace is over.
            self._checker.resuming((k for k, s in self.in_force.items() if s == selector), at)
        receipt = await self.call("POST", "/v1/mesh/kill", body)
        self.in_force[receipt["kill_id"]] = selector
        self._journal.note(f"kill {mode}", f"{selector} asked at {at:.3f} {_said(receipt)}")
        self._take(receipt, first=True)

    async def _resume(self) -> None:
        selector = self._chance.choice([*self.in_force.values(), self._everyone])
        # A person who has stopped somebody looks at it for a moment, mostly.
        await asyncio.sleep(self._chance.choice((0.05, 0.3, 1.0, 2.0)))
        lifted = [
            kill_id
            for kill_id, stopped in self.in_force.items()
            if selector in (stopped, self._everyone)
        ]
        at = time.monotonic()
        self._checker.resuming(lifted, at)
        self._pending.difference_update(lifted)
        for kill_id in lifted:
            del self.in_force[kill_id]
        answer = await self.call("POST", "/v1/mesh/resume", {"selector": selector})
        self._journal.note("resume", f"{selector} asked at {at:.3f} lifted {answer.get('lifted')}")

    async def _complete(self) -> None:
        """Look again at the receipts that were not confirmed when they were answered."""
        while True:
            await asyncio.sleep(0.1)
            for kill_id in tuple(self._pending):
                shown = await self.call("GET", f"/v1/mesh/kills/{kill_id}")
                if kill_id in self._pending:  # else it was resumed meanwhile
                    self._take(shown["receipt"], first=False)

    def _take(self, receipt: dict, *, first: bool) -> None:
        known, kill_id = time.monotonic(), receipt["kill_id"]
        states = [proxy["state"] for proxy in receipt["proxies"]]
        halted = receipt["confirmed"] and receipt["halted_at"] is not None
        if receipt["confirmed"] and (not states or "pending" in states):
            raise AssertionError(f"confirmed over {states or 'nobody'}: {receipt}")
        if not halted:
            self._pending.add(kill_id)
            if first:
                self._journal.note("receipt pending")
            return
        self._pending.discard(kill_id)
        for state in states:
            self._journal.counts[f"proxy {state}"] += 1
        start = moment_of(receipt["halted_at"], known)
        late = "at once" if first else "later"
        self._journal.note(f"receipt confirmed {late}", f"{_said(receipt)} halted {start:.3f}")
        selector = self.in_force.get(kill_id)
        if selector is not None:
            self._checker.halted(self._agents[selector], kill_id, receipt["mode"], start)


def _said(receipt: dict) -> str:
    states = ",".join(f"{p['proxy_id'][-1]}={p['state']}" for p in receipt["proxies"])
    return f"{receipt['kill_id']} confirmed={receipt['confirmed']} {states}"


class Havoc:
    """Faults of processes and of links, in two lanes, each with pauses in which all is well."""

    def __init__(self, system: FaultySystem, journal: Journal, chance: random.Random) -> None:
        self._system, self._journal, self._chance = system, journal, chance
        self._killed: dict[str, float] = {}

    async def work(self) -> None:
        """Break and mend at random, until cancelled; then all is mended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._lane(self._process_fault))
                tasks.create_task(self._lane(self._link_fault))
        finally:
            self.mend()

    def mend(self) -> None:
        """Wake who stands still, and heal every link."""
        for link in self._system.links:
            link.heal()
        for pid in (*self._system.pids("proxy"), *self._system.pids("control")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _lane(self, fault: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._chance.choice((0.3, 1.0, 3.0)))
            await fault()

    async def _process_fault(self) -> None:
        role = self._chance.choices(("proxy", "control"), (2, 1))[0]
        pids = self._system.pids(role)
        if not pids:
            return
        pid = self._chance.choice(pids)
        may_kill = time.monotonic() - self._killed.get(role, 0.0) > KILLED_AT_MOST_EVERY_S
        if may_kill and self._chance.random() < 0.35:
            self._killed[role] = time.monotonic()
            self._journal.note(f"SIGKILL {role}", str(pid))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        seconds = self._chance.choice((0.1, 0.5, 1.0, 1.5, 3.0, 5.0)) * self._chance.uniform(0.7, 1)
        self._journal.note(f"SIGSTOP {role}", f"{pid} for {seconds:.2f}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self._journal.note("SIGCONT", str(pid))

    async def _link_fault(self) -> None:
        links = self._system.links
        chosen = links if self._chance.random() < 0.3 else [self._chance.choice(links)]
        name, act = self._chance.choice(LINK_FAULTS)
        seconds = self._chance.choice((0.1, 0.5, 1.5, 3.0, 5.0)) * self._chance.uniform(0.7, 1)
        which = ",".join(str(links.index(link) + 1) for link in chosen)
        self._journal.note(f"link {name}", f"of {which} for {seconds:.2f}")
        try:
            for link in chosen:
                act(link, self._chance)
            await asyncio.sleep(seconds)
        finally:
            for link in chosen:
                link.heal()
            self._journal.note("healed", which)


def _late(link: FaultProxy, chance: random.Random) -> None:
    link.latency_s, link.jitter_s = chance.uniform(0, 0.3), chance.uniform(0, 0.5)


def _slow(link: FaultProxy, chance: random.Random) -> None:
    link.bytes_per_s = chance.choice((300, 2000, 20_000))


def _mixed(link: FaultProxy, chance: random.Random) -> None:
    link.duplicates, link.reorders = chance.random(), chance.random()
    link.replays = chance.choice((0.0, 0.5))


LINK_FAULTS: tuple[tuple[str, Callable[[FaultProxy, random.Random], None]], ...] = (
    ("latency", _late),
    ("hole both ways", lambda link, _: link.hole(UP, DOWN)),
    ("hole up", lambda link, _: link.hole(UP)),
    ("hole down", lambda link, _: link.hole(DOWN)),
    ("reset", lambda link, _: link.reset()),
    ("half-open, worker lives", lambda link, _: link.half_open(DOWN)),
    ("half-open, control lives", lambda link, _: link.half_open(UP)),
    ("half-closed up", lambda link, _: link.half_close(UP)),
    ("half-closed down", lambda link, _: link.half_close(DOWN)),
    ("throttled", _slow),
    ("doubled, mixed and repeated", _mixed),
)


@contextlib.contextmanager
def told(journal: Journal, checker: Checker, seed: int) -> Iterator[None]:
    """What failed is explained: the seed, what was done, what should not have arrived."""
    try:
        yield
    finally:
        seconds = time.monotonic() - journal.began
        print(f"\nHALTWIRE_FAULT_SEED={seed}, {seconds:.0f} s, {checker.arrivals} arrivals")
        print(", ".join(f"{n} {kind}" for kind, n in sorted(journal.counts.items())))
        if checker.violations:
            print("\n".join(journal.lines[-400:]))
            print("\n".join(map(str, checker.violations[:50])))


def _states(supervisor: int) -> str:
    """What each process of a system is doing, as its kernel says."""
    told = []
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for pid in (str(supervisor), *children):
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2:]
            told.append(f"{pid} {command} {stat[0]} cpu {stat[11]}+{stat[12]} since {stat[19]}")
    return ", ".join(told)
