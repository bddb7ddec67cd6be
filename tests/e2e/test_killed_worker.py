"""kill -9 of a worker under load: the other serves on, a new one comes, and who is killed stays so."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from support.invariant import Checker, Lag, moment_of
from support.numbered import Agent, Arrival, Origin, Place
from support.up_through import faulty_system

BACK_WITHIN_S = 40.0
"Two seconds on a machine with nothing else to do; `-s` shows what it took."
TIMES = 3


async def test_the_other_serves_on_and_a_killed_agent_stays_killed(tmp_path, authority):
    lag, arrivals = Lag(), []
    checker = Checker(lag)

    def arrived(one: Arrival) -> None:
        arrivals.append(one)
        checker.arrived(one)

    ca = ("--upstream-ca", str(authority.ca_file))
    async with (
        faulty_system(tmp_path, *ca) as system,
        Origin(arrived) as plain,
        Origin(arrived, authority.server_context("localhost")) as tls,
    ):
        place = Place(system.port, plain, tls, str(system.ca_file), str(authority.ca_file))

        async def agent(name: str) -> Agent:
            urls = [
                await system.token(f"agent://acme/prod/{name}", kind)
                for kind in ("tunnel", "intercept")
            ]
            secrets = [url.partition("@")[0].rpartition(":")[2] for url in urls]
            return Agent(name, "prod", *secrets, place)

        async def has_sent(name: str, ways: set[str]) -> None:
            began = time.monotonic()
            async with asyncio.timeout(BACK_WITHIN_S):
                while {a.way for a in arrivals if a.agent == name and a.sent > began} < ways:
                    await asyncio.sleep(0.01)

        stopped, beside = await agent("stopped"), await agent("beside")
        ways = set(beside.ways)
        async with asyncio.TaskGroup() as tasks:
            sending = [
                tasks.create_task(one.send(way, random.Random(1)))
                for one in (stopped, beside)
                for way in ways
            ]
            sending.append(tasks.create_task(lag.watch()))
            await has_sent("stopped", ways)
            _, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": stopped.uri})
            halted = moment_of(receipt["halted_at"], time.monotonic())
            checker.halted(["stopped"], receipt["kill_id"], "cut", halted)
            for _ in range(TIMES):
                before = set(system.pids("proxy"))
                victim = min(before)
                links = sum(link.accepted for link in system.links)
                killed_at = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                await has_sent("beside", ways)
                served_s = time.monotonic() - killed_at
                async with asyncio.timeout(BACK_WITHIN_S):
                    while (
                        len(set(system.pids("proxy")) - {victim}) < len(before)
                        or sum(link.accepted for link in system.links) == links
                    ):
                        await asyncio.sleep(0.01)
                back_s = time.monotonic() - killed_at
                print(
                    f"\nserved by every way after {served_s:.2f} s, a new worker after {back_s:.2f} s"
                )
                _, again = await system.api(
                    "POST", "/v1/mesh/kill", {"selector": stopped.uri, "wait_s": 20}
                )
                assert again["confirmed"], again
            attempts = sum(stopped.refused.values())
            for task in sending:
                task.cancel()
    assert checker.violations == [], "\n".join(map(str, checker.violations[:20]))
    assert attempts > 200
