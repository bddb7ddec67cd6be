"""A child that hangs, one that is slow, and a supervisor that stood still itself: with real processes."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from haltwire_cli.child import Child
from haltwire_cli.notify import Notifier
from haltwire_cli.supervisor import supervise

HEAD = """
import asyncio, json, os, signal, sys, time
from haltwire_cli.pulse import answering
told = json.loads(b"".join(iter(lambda: os.read(0, 1), b"\\n")))
with open(told["pids"], "a") as file: file.write(f"{os.getpid()}\\n")
starts = len(open(told["pids"]).readlines())
def ready(): os.write(1, b'{"ready": true}\\n')
"""
ANSWERS = (
    HEAD
    + """
async def main():
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    ended = answering()
    loop.add_reader(ended, stop.set)
    ready()
    await stop.wait()
asyncio.run(main())
"""
)
HUNG_S = 2.0


class Family:
    """Children under a supervisor, in this process."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.said: list[str] = []
        self.ready = asyncio.Event()

    def child(self, code: str, name: str = "worker", **more) -> Child:
        told = {"pids": str(self.folder / name)}
        return Child(name, (sys.executable, "-c", code), told, **more)

    def pids(self, name: str = "worker") -> list[int]:
        file = self.folder / name
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    async def run(self, *children: Child, notifier: Notifier | None = None) -> None:
        await supervise([children], self.ready.set, lambda: None, self.said.append, notifier)

    async def until(self, condition) -> None:
        async with asyncio.timeout(40):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_said(self, words: str) -> None:
        await self.until(lambda: any(words in line for line in self.said))


@pytest.fixture
def family(tmp_path) -> Family:
    return Family(tmp_path)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", ["frozen", "its loop stands still"])
async def test_a_child_that_does_not_answer_is_killed_and_started_again(family, how):
    """Not by a thread of its own: what serves is the loop."""
    stuck = ANSWERS.replace("    ready()\n", "    ready()\n    if starts == 1: time.sleep(600)\n")
    code = ANSWERS if how == "frozen" else stuck
    async with asyncio.TaskGroup() as group:
        group.create_task(
            family.run(
                family.child(code, hung_after_s=HUNG_S),
                family.child(ANSWERS, "other", hung_after_s=HUNG_S),
            )
        )
        await family.ready.wait()
        began = time.monotonic()
        if how == "frozen":
            os.kill(family.pids()[0], signal.SIGSTOP)
        await family.until_said("worker is back")
        assert time.monotonic() - began > HUNG_S
        stop()
    assert family.said == [
        "worker did not answer for 2 s and was killed; starting it again in 0.1 s",
        "worker is back",
    ]
    assert (len(family.pids()), len(family.pids("other"))) == (2, 1)


async def test_who_is_not_to_be_killed_may_be_silent(family):
    async with asyncio.TaskGroup() as group:
        group.create_task(family.run(family.child(HEAD + "ready(); os.read(0, 1)\ntime.sleep(9)")))
        await family.ready.wait()
        await asyncio.sleep(3)
        stop()
    assert family.said == []
    assert len(family.pids()) == 1


async def test_a_start_that_takes_long_is_not_hanging(family):
    slow = ANSWERS.replace("    ready()\n", "    time.sleep(3)\n    ready()\n")
    async with asyncio.TaskGroup() as group:
        group.create_task(family.run(family.child(slow, hung_after_s=HUNG_S)))
        await family.ready.wait()
        await asyncio.sleep(3)
        stop()
    assert family.said == []


async def test_one_started_again_may_wait_as_long_as_it_answers(family):
    """Otherwise a worker would be killed every half minute for as long as the control server is away."""
    waits = ANSWERS.replace(
        "    ready()\n", "    await asyncio.sleep(4 * (starts > 1))\n    ready()\n"
    )
    limited = family.child(waits, start_within_s=2.0, hung_after_s=HUNG_S)
    async with asyncio.TaskGroup() as group:
        group.create_task(family.run(limited))
        await family.ready.wait()
        os.kill(family.pids()[0], signal.SIGKILL)
        await family.until_said("worker is back")
        stop()
    assert len(family.pids()) == 2


async def test_one_started_again_that_hangs_before_it_is_ready_is_not_waited_for(family):
    hangs = ANSWERS.replace("    ready()\n", "    if starts == 2: time.sleep(600)\n    ready()\n")
    async with asyncio.TaskGroup() as group:
        group.create_task(family.run(family.child(hangs, start_within_s=3.0, hung_after_s=HUNG_S)))
        await family.ready.wait()
        os.kill(family.pids()[0], signal.SIGKILL)
        await family.until_said("worker is back")
        stop()
    assert family.said[1] == "worker was not ready within 3 s; starting it again in 0.2 s"


async def test_a_child_that_has_been_asked_to_stop_is_left_its_time(family):
    busy = ANSWERS.replace("    await stop.wait()", "    await stop.wait()\n    time.sleep(3)")
    async with asyncio.TaskGroup() as group:
        group.create_task(family.run(family.child(busy, hung_after_s=HUNG_S, drain_s=30.0)))
        await family.ready.wait()
        stop()
    assert family.said == [
        "waiting up to 30 s for what is under way; another signal stops it at once"
    ]


PARENT = """
import asyncio, sys
from haltwire_cli.child import Child
from haltwire_cli.supervisor import supervise
code, pids = sys.argv[1:]
children = [Child(name, (sys.executable, "-c", code), {"pids": pids}, hung_after_s=2.0) for name in "ab"]
say = lambda line: print(line, flush=True)
asyncio.run(supervise([children], lambda: say("ready"), lambda: None, say))
"""


@contextmanager
def parent_of_two(pids: Path) -> Iterator[subprocess.Popen]:
    """A supervisor in a process of its own, with all its children ready."""
    command = [sys.executable, "-c", PARENT, ANSWERS, str(pids)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            yield parent
        finally:
            parent.kill()


def test_a_supervisor_that_stood_still_kills_no_healthy_child(tmp_path):
    """As when a container is paused. Judged by what was asked before, both were killed when it woke."""
    pids = tmp_path / "pids"
    with parent_of_two(pids) as parent:
        children = pids.read_text()
        for _ in range(2):
            for pid in children.split():
                os.kill(int(pid), signal.SIGSTOP)
            time.sleep(0.6)  # a question is open now
            parent.send_signal(signal.SIGSTOP)
            time.sleep(3)
            parent.send_signal(signal.SIGCONT)
            time.sleep(0.4)
            for pid in children.split():
                os.kill(int(pid), signal.SIGCONT)
            time.sleep(1)
        time.sleep(2)
        parent.terminate()
        assert parent.stdout.read() == ""
        assert parent.wait(20) == 0
    assert pids.read_text() == children


def test_a_supervisor_that_stood_still_finds_who_hung_meanwhile(tmp_path):
    pids = tmp_path / "pids"
    with parent_of_two(pids) as parent:
        parent.send_signal(signal.SIGSTOP)
        os.kill(int(pids.read_text().split()[0]), signal.SIGSTOP)
        time.sleep(3)
        parent.send_signal(signal.SIGCONT)
        assert "did not answer for 2 s and was killed" in parent.stdout.readline()
        assert parent.stdout.readline().endswith(" is back\n")
        parent.terminate()
        assert parent.wait(20) == 0


async def test_what_systemd_hears(family, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        heard: list[str] = []

        def hear() -> str:
            try:
                while True:
                    heard.append(systemd.recv(1000).decode())
            except BlockingIOError:
                return "\n".join(heard)

        notifier = Notifier(str(tmp_path / "notify"), watchdog_s=0.2)
        environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
        async with asyncio.TaskGroup() as group:
            group.create_task(
                family.run(family.child(ANSWERS, environment=environment), notifier=notifier)
            )
            await family.until(lambda: "READY=1\nSTATUS=1 processes run" in hear())
            heard.clear()
            await family.until(lambda: hear().count("WATCHDOG=1") > 3)
            child = family.pids()[0]
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{child}/environ").read_bytes()
            assert b"WATCHDOG" not in Path(f"/proc/{child}/environ").read_bytes()
            os.kill(child, signal.SIGSTOP)
            await asyncio.sleep(4)
            hear()
            heard.clear()
            await asyncio.sleep(1)
            assert hear() == ""  # it does not answer, and nobody may kill it for that
            os.kill(child, signal.SIGCONT)
            await family.until(lambda: "WATCHDOG=1" in hear())
            os.kill(child, signal.SIGKILL)
            await family.until(lambda: "STATUS=worker is back" in hear())
            stop()
        assert "STOPPING=1\nEXTEND_TIMEOUT_USEC=3000000\nSTATUS=stopping" in hear()
