"""A process that dies, hangs or is to stop, under a running `haltwire up`: the others serve on, and no order is forgotten."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.client import Wire, tunnel
from support.recorder import Recorder
from support.scripted import until
from support.stopping import children
from support.system import System
from support.world import basic

MAILER, BYSTANDER = "agent://acme/prod/mailer", "agent://acme/prod/bystander"
TROUBLE = (ConnectionError, asyncio.IncompleteReadError, TimeoutError)
SLOW_S = 60.0
"How long a loaded machine may take to start a process again; what it took is printed."


@pytest.fixture
async def origin():
    async with Recorder() as recorder:
        yield recorder


@asynccontextmanager
async def up(tmp_path, *options, **more):
    async with System(tmp_path / "data", "--workers", "2", *options, **more) as system:
        yield system


class Caller:
    """One agent that asks again and again, on a new connection each time."""

    def __init__(self, system: System, origin: Recorder, proxy_url: str) -> None:
        label, _, secret = proxy_url.removeprefix("http://").partition("@")[0].rpartition(":")
        self.label, self.secret = label, secret
        self._auth = f"Proxy-Authorization: {basic(label, secret)}"
        self._port, self._host = system.port, f"127.0.0.1:{origin.port}"
        self.answers: list[int] = []
        self.failures: list[str] = []

    @classmethod
    async def of(cls, system: System, origin: Recorder, agent: str):
        return cls(system, origin, await system.token(agent))

    async def ask(self, path: str = "/idle") -> int:
        wire = await Wire.open(self._port)
        try:
            target = f"http://{self._host}{path}"
            answer = await wire.request("GET", target, f"Host: {self._host}", self._auth)
            return answer.status
        finally:
            wire.close()
            Wire.opened.remove(wire)

    async def go_on(self) -> None:
        while True:
            try:
                self.answers.append(await self.ask())
            except TROUBLE as error:
                self.failures.append(repr(error))
            await asyncio.sleep(0.005)

    async def answered(self, more: int = 20) -> None:
        """Return when it has got some more answers."""
        before = len(self.answers)
        await until(lambda: len(self.answers) >= before + more, SLOW_S)


async def test_a_worker_that_is_killed_takes_nobody_with_it(tmp_path, origin, capsys):
    async with up(tmp_path) as system, Recorder() as other:
        mailer = await Caller.of(system, other, MAILER)
        bystander = await Caller.of(system, origin, BYSTANDER)
        assert await mailer.ask() == 200
        _, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": MAILER, "wait_s": 10})
        assert receipt["confirmed"] is True
        arrived = other.arrived()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.go_on()) for one in (mailer, bystander)]
            await bystander.answered()
            before = children(system, "proxy")
            os.kill(before[0], signal.SIGKILL)
            began = time.monotonic()
            await bystander.answered()  # by the other one
            others = time.monotonic() - began
            fresh = await until_replaced(system, before)
            await until_served_by(system, fresh)
            back = time.monotonic() - began
            await bystander.answered()
            await mailer.answered()
            for task in tasks:
                task.cancel()
        assert before[1] in children(system, "proxy")
        assert set(bystander.answers) == {200}
        assert len(bystander.failures) <= 1, bystander.failures  # what the dead one had in hand
        assert set(mailer.answers) == {403}
        assert other.arrived() == arrived
    with capsys.disabled():
        print(
            f"\nthe others served on after {others:.2f} s, a new worker was there after {back:.2f} s"
        )


async def test_a_worker_that_hangs_is_replaced_and_said_so(tmp_path, origin):
    async with up(tmp_path, hung_after="2s") as system:
        mailer = await Caller.of(system, origin, MAILER)
        before = children(system, "proxy")
        os.kill(before[0], signal.SIGSTOP)
        fresh = await until_replaced(system, before)
        await until_served_by(system, fresh)
        assert await mailer.ask() == 200
        _, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": MAILER, "wait_s": 20})
        assert receipt["confirmed"] is True, receipt
        assert await mailer.ask() == 403
    said = [line for line in system.output.splitlines() if "did not answer" in line]
    assert len(said) == 1, system.output
    assert said[0].startswith("haltwire: proxy worker ")
    assert said[0].endswith(" did not answer for 2 s and was killed; starting it again in 0.1 s")


async def test_a_control_server_that_hangs_is_replaced(tmp_path, origin):
    async with up(tmp_path, "--hold-for", "60s", hung_after="2s") as system:
        mailer = await Caller.of(system, origin, MAILER)
        (hung,) = children(system, "control")
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: children(system, "control") not in ([hung], []), SLOW_S)
        status, receipt = await system.api(
            "POST", "/v1/mesh/kill", {"selector": MAILER, "wait_s": 20}
        )
        assert status < 300, receipt
        assert receipt["confirmed"] is True, receipt
        assert await mailer.ask() == 403
    assert "the control server did not answer for 2 s and was killed" in system.output


async def test_a_stopped_worker_does_not_outlive_a_killed_supervisor(tmp_path):
    async with up(tmp_path) as system:
        pids = children(system, "proxy") + children(system, "control")
        assert len(pids) == 3
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        system.process.kill()
        await until(lambda: not any(map(lives, pids)), 10)


async def test_a_stop_waits_for_what_is_under_way_and_kills_still_cut(tmp_path, origin):
    async with up(tmp_path, drain_for="60s") as system:
        mailer = await Caller.of(system, origin, MAILER)
        bystander = await Caller.of(system, origin, BYSTANDER)
        there = f"127.0.0.1:{origin.port}"
        cut = await tunnel(system.port, there, mailer.label, mailer.secret)
        await cut.request("GET", "/events", f"Host: {there}", read=False)
        asked = asyncio.get_running_loop().create_task(bystander.ask("/waiting"))
        await origin.has(2, 2)
        system.process.send_signal(signal.SIGTERM)
        await until_refused(system.port)
        killed = await system.cli("kill", MAILER, "--wait", "20s", "--json")
        assert killed.json()["confirmed"] is True, killed
        assert await cut.ended(10) is not None
        assert not asked.done()
        origin.answer()
        assert await asked == 200
        assert await asyncio.wait_for(system.process.wait(), SLOW_S) == 0
    assert "was killed" not in system.output


async def test_an_idle_system_stops_at_once(tmp_path, origin):
    async with up(tmp_path, drain_for="1h") as system:
        mailer = await Caller.of(system, origin, MAILER)
        wire = await Wire.open(system.port)
        target = f"http://127.0.0.1:{origin.port}/idle"
        host = f"Host: 127.0.0.1:{origin.port}"
        answer = await wire.request("GET", target, host, mailer._auth)
        assert answer.status == 200
        system.process.send_signal(signal.SIGTERM)
        assert await wire.ended(20) == b""
        assert await asyncio.wait_for(system.process.wait(), SLOW_S) == 0
    assert "was killed" not in system.output


async def test_a_second_signal_stops_at_once(tmp_path, origin):
    async with up(tmp_path, drain_for="1h") as system:
        mailer = await Caller.of(system, origin, MAILER)
        wire = await tunnel(system.port, f"127.0.0.1:{origin.port}", mailer.label, mailer.secret)
        pids = children(system, "proxy") + children(system, "control")
        system.process.send_signal(signal.SIGINT)
        await until_refused(system.port)
        await asyncio.sleep(1)
        assert sum(map(lives, pids)) == 2  # the control server, and the worker that has the tunnel
        system.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(system.process.wait(), 20) == 0
        assert not any(map(lives, pids))
        await wire.ended(20)
        await origin.all_ended(20)


async def until_replaced(system: System, before: list[int]) -> int:
    """Return the pid of the worker that stands in for one of these."""
    fresh: list[int] = []

    def is_there() -> bool:
        fresh[:] = [pid for pid in children(system, "proxy") if pid not in before]
        return len(fresh) == 1

    await until(is_there, SLOW_S)
    return fresh[0]


async def until_served_by(system: System, pid: int) -> None:
    """Return when the control server has this worker's word."""
    async with asyncio.timeout(SLOW_S):
        while True:
            _, listed = await system.api("GET", "/v1/proxies")
            if any(one["pid"] == pid and one["current"] for one in listed["proxies"]):
                return
            await asyncio.sleep(0.02)


async def until_refused(port: int) -> None:
    async with asyncio.timeout(SLOW_S):
        while True:
            try:
                wire = await Wire.open(port)
            except ConnectionRefusedError:
                return
            wire.close()
            Wire.opened.remove(wire)
            await asyncio.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
