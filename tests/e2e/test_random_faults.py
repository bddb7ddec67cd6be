"""Agents send, operators stop and resume, and everything breaks at random: nothing of a stopped agent arrives.

A real `haltwire up` with two workers, a fault proxy between each and the control server. `make faults`
goes on for an hour; HALTWIRE_FAULT_SECONDS and HALTWIRE_FAULT_SEED say how long, and as when.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass

import pytest
from support.havoc import Havoc, Journal, Operator, told
from support.invariant import CLOCKS_S, SLACK_S, Checker, Lag, moment_of
from support.numbered import Agent, Arrival, Origin, Place
from support.up_through import FaultySystem, faulty_system

SECONDS = float(os.environ.get("HALTWIRE_FAULT_SECONDS", "60"))
SEED = int(os.environ.get("HALTWIRE_FAULT_SEED") or time.time_ns() % 1_000_000_000)
GROUPS = {"red": ("r1", "r2", "r3"), "blue": ("b1", "b2", "b3")}
BACK_WITHIN_S = 40.0


def arrival(sent: float, at: float, agent: str = "r1") -> Arrival:
    return Arrival(agent, "plain", 1, sent, at)


CASES = {
    "before the halt": (arrival(9.0, 9.1), []),
    "sent before, read at once": (arrival(9.99, 10.3), []),
    "sent before, read long after": (arrival(9.0, 12.0), ["read 0.50 s after the halt"]),
    "sent after": (arrival(10.1, 10.2), ["sent after the halt"]),
    "of another agent": (arrival(11.0, 11.1, "b1"), []),
}


@pytest.mark.parametrize("known", ["before", "after"], ids=["told before", "told after"])
@pytest.mark.parametrize(("seen", "wrong"), CASES.values(), ids=CASES)
def test_what_the_checker_says(seen, wrong, known):
    """Whether the receipt or the arrival is known first makes no difference."""
    checker = Checker()
    steps = [
        lambda: checker.halted(["r1", "r2"], "K1", "cut", 10.0),
        lambda: checker.arrived(seen),
    ]
    for step in steps if known == "before" else reversed(steps):
        step()
    assert [violation.what for violation in checker.violations] == wrong


def test_after_a_resume_everything_may_arrive_and_another_order_goes_on():
    checker = Checker()
    checker.halted(["r1"], "K1", "cut", 10.0)
    checker.halted(["r1"], "K2", "cut", 11.0)
    checker.resuming(["K1"], 12.0)
    checker.arrived(arrival(10.5, 10.6))
    assert checker.violations == []
    checker.arrived(arrival(12.5, 12.6))
    assert [violation.window.kill_id for violation in checker.violations] == ["K2"]
    checker.resuming(["K2"], 13.0)
    checker.arrived(arrival(13.5, 13.6))
    assert len(checker.violations) == 1


def test_a_moment_is_never_later_than_the_receipt():
    known = time.monotonic()
    assert moment_of("2999-01-01T00:00:00Z", known) == known
    assert moment_of("2001-01-01T00:00:00Z", known) < known - SLACK_S - CLOCKS_S


@dataclass
class Stage:
    """All that takes part."""

    system: FaultySystem
    checker: Checker
    journal: Journal
    agents: list[Agent]
    operators: list[Operator]
    havoc: Havoc
    chance: random.Random
    heard: Counter[tuple[str, str]]

    async def run(self, seconds: float, *, breaking: bool = True) -> None:
        """Send, stop, resume and break for so long; the senders go on until the end of the test."""
        async with asyncio.TaskGroup() as tasks:
            for operator in self.operators:
                tasks.create_task(operator.work())
            breaks = tasks.create_task(self.havoc.work()) if breaking else None
            until = time.monotonic() + seconds
            while time.monotonic() < until and not self.checker.violations:
                await asyncio.sleep(0.1)
            if breaks is not None:
                breaks.cancel()
            for operator in self.operators:
                operator.leave()

    async def reached(self, within_s: float, agents: set[str]) -> None:
        """Return when something new of these agents has arrived by each of their ways."""
        before = self.heard.copy()
        waiting = {(a.name, way) for a in self.agents if a.name in agents for way in a.ways}
        until = time.monotonic() + within_s
        while waiting := {one for one in waiting if self.heard[one] == before[one]}:
            if time.monotonic() > until:
                refused = {a.name: dict(a.refused) for a in self.agents}
                raise AssertionError(f"still stopped: {sorted(waiting)}; {refused}")
            await asyncio.sleep(0.05)


async def on_stage(tmp_path, authority, seed: int, play, *, direct: bool = False) -> Stage:
    """Put everything up, and play."""
    chance = random.Random(seed)
    lag, heard, journal = Lag(), Counter(), Journal()
    checker = Checker(lag)

    def arrived(one: Arrival) -> None:
        heard[one.agent, one.way] += 1
        checker.arrived(one)

    async with (
        faulty_system(
            tmp_path, "--upstream-ca", str(authority.ca_file), "--lease", "1s", chance=chance
        ) as system,
        Origin(arrived) as plain,
        Origin(arrived, authority.server_context("localhost")) as tls,
    ):
        place = Place(system.port, plain, tls, str(system.ca_file), str(authority.ca_file))

        async def agent(name: str, group: str) -> Agent:
            urls = [
                await system.token(f"agent://acme/{group}/{name}", kind)
                for kind in ("tunnel", "intercept")
            ]
            secrets = [url.partition("@")[0].rpartition(":")[2] for url in urls]
            return Agent(name, group, *secrets, place)

        agents = [await agent(name, group) for group, names in GROUPS.items() for name in names]
        operators = [
            Operator(
                system,
                group,
                [a for a in agents if a.group == group],
                checker,
                journal,
                random.Random(chance.random()),
            )
            for group in GROUPS
        ]
        if direct:
            past = Place(None, plain, tls, str(system.ca_file), str(authority.ca_file))
            agents.append(Agent("r1", "red", "", "", past))
        havoc = Havoc(system, journal, random.Random(chance.random()))
        stage = Stage(system, checker, journal, agents, operators, havoc, chance, heard)
        with told(journal, checker, seed):
            try:
                async with asyncio.TaskGroup() as tasks:
                    senders = [
                        tasks.create_task(a.send(way, random.Random(chance.random())))
                        for a in agents
                        for way in a.ways
                    ]
                    senders.append(tasks.create_task(lag.watch()))
                    await play(stage)
                    for sender in senders:
                        sender.cancel()
            finally:
                havoc.mend()
                print("sent:", sum((a.sent for a in agents), Counter()))
                print("refused:", sum((a.refused for a in agents), Counter()))
                await system.stop(signal.SIGTERM)
                print(system.output[-20_000:] if checker.violations else "")
    return stage


async def test_nothing_of_a_stopped_agent_arrives_whatever_breaks(tmp_path, authority):
    everyone = {name for names in GROUPS.values() for name in names}

    async def play(stage: Stage) -> None:
        await stage.reached(BACK_WITHIN_S, everyone)
        await stage.run(SECONDS)
        assert stage.checker.violations == []

        # No kill is lost, and nobody is stopped who need not be.
        kills = await stage.operators[0].call("GET", "/v1/mesh/kills")
        in_force = {kill["kill_id"] for kill in kills["kills"]}
        ordered = {k for operator in stage.operators for k in operator.in_force}
        assert ordered == in_force, stage.journal.lines[-50:]
        stopped = {
            name
            for operator in stage.operators
            for selector in operator.in_force.values()
            for name in operator._agents[selector]
        }
        await stage.reached(BACK_WITHIN_S, everyone - stopped)
        began = time.monotonic()
        stage.checker.halted(stopped, "the end", "any", began)
        await stage.reached(BACK_WITHIN_S, everyone - stopped)
        await asyncio.sleep(1.0)
        assert stage.checker.violations == []
        stage.checker.resuming(["the end"], time.monotonic())
        for operator in stage.operators:
            await operator.resume_all()
        await stage.reached(BACK_WITHIN_S, everyone)

    stage = await on_stage(tmp_path, authority, SEED, play)
    counts = stage.journal.counts
    assert stage.checker.halts > SECONDS / 20, (
        "too few kills were confirmed for this to mean anything"
    )
    assert counts["resume"] > SECONDS / 20
    assert sum(n for kind, n in counts.items() if kind.startswith(("SIG", "link"))) > SECONDS / 10
    assert stage.checker.arrivals > 10 * SECONDS


async def test_an_agent_with_a_way_past_the_proxy_is_found(tmp_path, authority):
    """The check itself: with one that no proxy can stop it must fail."""

    async def play(stage: Stage) -> None:
        await stage.run(120.0, breaking=False)  # it ends with the first violation

    stage = await on_stage(tmp_path, authority, 1, play, direct=True)
    assert stage.checker.violations
    assert {v.arrival.way for v in stage.checker.violations} == {"direct"}
