"""The supervisor, with real processes that do nothing but what a test needs."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from haltwire_cli.child import Child
from haltwire_cli.supervisor import ChildFailedError, supervise

READY = "import json, os, sys, time, signal; told = json.loads(sys.stdin.readline()); print(json.dumps({'ready': True}), flush=True)\n"
UNTIL_ORPHANED = READY + "sys.stdin.read()\n"


def child(code: str, name: str = "worker", **more) -> Child:
    argv = (sys.executable, "-c", textwrap.dedent(code))
    limits = {"stop_within_s": 30.0, **more}  # a busy machine is no reason to be killed
    return Child(name, argv, limits.pop("instructions", {}), **limits)


class Watch:
    """What the supervisor said, and how it is told to stop."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stopped = 0
        self.ready = asyncio.Event()

    def on_stop(self) -> None:
        self.stopped += 1

    async def run(self, *stages: tuple[Child, ...]) -> None:
        await supervise(stages, self.ready.set, self.on_stop, self.said.append)

    async def until_said(self, words: str) -> None:
        async with asyncio.timeout(10):
            while not any(words in line for line in self.said):
                await asyncio.sleep(0.01)


@pytest.fixture
def watch() -> Watch:
    return Watch()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


async def test_stages_start_in_order_and_stop_in_reverse(watch, tmp_path):
    log = tmp_path / "log"
    note = f"""
    import signal, sys, json
    name = json.loads(sys.stdin.readline())["name"]
    def say(word):
        with open({str(log)!r}, "a") as f: f.write(f"{{name}} {{word}}\\n")
    signal.signal(signal.SIGTERM, lambda *_: (say("stops"), sys.exit(0)))
    say("starts")
    print('{{"ready": true}}', flush=True)
    sys.stdin.read()
    """
    first = child(note, instructions={"name": "control"})
    second = child(note, instructions={"name": "proxy"})
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.run((first,), (second,)))
        await watch.ready.wait()
        stop()
    assert lines(log) == ["control starts", "proxy starts", "proxy stops", "control stops"]
    assert watch.stopped == 1
    assert watch.said == []


async def test_a_child_that_dies_is_started_again(watch, tmp_path):
    pids = tmp_path / "pids"
    code = READY + f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); sys.stdin.read()"
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.run((child(code),)))
        await watch.ready.wait()
        while not lines(pids):
            await asyncio.sleep(0.01)
        os.kill(int(lines(pids)[0]), signal.SIGKILL)
        await watch.until_said("worker is back")
        stop()
    assert "worker ended (signal SIGKILL); starting it again in 0.1 s" in watch.said


async def test_a_child_that_cannot_start_ends_all_and_is_named(watch):
    """An endless loop of starts would hide what is wrong."""
    with pytest.raises(ChildFailedError, match=r"ended before it was ready \(exit code 3\)"):
        await watch.run(
            (child(UNTIL_ORPHANED, "first"),), (child("raise SystemExit(3)", "second"),)
        )
    assert watch.stopped == 1
    assert not watch.ready.is_set()


async def test_a_child_that_never_gets_ready_is_killed(watch):
    silent = child("import time; time.sleep(60)", start_within_s=0.3)
    with pytest.raises(ChildFailedError, match="was not ready within"):
        await watch.run((silent,))


async def test_a_program_that_is_not_there_is_named(watch):
    with pytest.raises(ChildFailedError, match="could not be started"):
        await watch.run((Child("ghost", ("/no/such/program",), {}),))


async def test_a_child_that_cannot_be_started_again_takes_nobody_with_it(
    watch, tmp_path, monkeypatch
):
    """Ten failed starts in a row used to end everything, the workers that went on serving included."""
    monkeypatch.setattr("haltwire_cli.child.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("haltwire_cli.child.LAST_DELAY_S", 0.02)
    starts, pids = tmp_path / "starts", tmp_path / "pids"
    once = f"""
    import os, sys
    with open({str(starts)!r}, "a") as f: f.write("x\\n")
    if len(open({str(starts)!r}).readlines()) > 1: sys.exit(4)
    print('{{"ready": true}}', flush=True)
    """
    lasting = READY + f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); sys.stdin.read()"
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(watch.run((child(once, "one"), child(lasting, "other"))))
        await watch.ready.wait()
        while len(lines(starts)) < 13:
            await asyncio.sleep(0.01)
        stop()
    assert len(lines(pids)) == 1
    assert watch.said[0].startswith("one ended (exit code 0); starting it again in 0.01 s")
    assert "one ended before it was ready (exit code 4); starting it again in 0.02 s" in watch.said


async def test_a_child_that_ignores_sigterm_is_killed(watch):
    deaf = child(
        READY.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print")
        + "time.sleep(60)",
        stop_within_s=0.2,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(watch.run((deaf,)))
        await watch.ready.wait()
        stop()
    assert watch.said == ["worker did not stop in time and was killed"]


async def test_a_stop_while_children_start_ends_them(watch):
    slow = child("import time; time.sleep(60)")
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(watch.run((slow,)))
        await asyncio.sleep(0.2)
        stop()
    assert not watch.ready.is_set()


async def test_chatter_before_and_after_ready_harms_nobody(watch):
    chatty = child(
        "print('hello\\n[1]')\n" + READY + "print('x' * 200_000, flush=True); sys.stdin.read()"
    )
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(watch.run((chatty,)))
        await watch.ready.wait()
        await asyncio.sleep(0.1)
        stop()
    assert watch.said == []


PARENT = """
import asyncio, json, os, sys
from haltwire_cli.child import Child
from haltwire_cli.supervisor import supervise
code = {code!r}
children = [Child(f"c{{n}}", (sys.executable, "-c", code), {{}}, stop_within_s=20) for n in range(2)]
asyncio.run(supervise([children], lambda: print("ready", flush=True), lambda: None, print))
"""


def start_parent(code: str) -> tuple[subprocess.Popen, list[int]]:
    """A supervisor in a process of its own, and the pids of its children."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(code=code)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "ready\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    return parent, [int(pid) for pid in children]


def wait_for(condition, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def test_children_end_when_their_parent_is_killed():
    parent, pids = start_parent(UNTIL_ORPHANED)
    with parent:
        parent.kill()
    assert len(pids) == 2
    assert wait_for(lambda: not any(map(lives, pids)), 2)


def test_the_second_signal_ends_all_at_once():
    deaf = READY.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print")
    parent, pids = start_parent(deaf + "time.sleep(60)")
    with parent:
        parent.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert all(map(lives, pids))
        parent.send_signal(signal.SIGINT)
        assert parent.wait(2) == 0
    assert not any(map(lives, pids))


def test_children_have_sessions_of_their_own():
    """So that a terminal's Ctrl-C, which goes to a whole group, reaches the supervisor alone."""
    parent, pids = start_parent(UNTIL_ORPHANED)
    with parent:
        sessions = {os.getsid(pid) for pid in pids}
        assert sessions == set(pids)
        parent.terminate()
        assert parent.wait(5) == 0


def test_instructions_are_in_no_argument_and_no_environment():
    secret = "hwk_not-for-everybody"
    code = PARENT.replace("{{}}, stop", f"{{{{'key': {secret!r}}}}}, stop").format(
        code=UNTIL_ORPHANED
    )
    parent = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        parent.stdin.write(code.encode())
        parent.stdin.close()
        assert parent.stdout.readline() == b"ready\n"
        pids = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        seen = [Path(f"/proc/{p}/{f}").read_bytes() for p in pids for f in ("cmdline", "environ")]
        parent.terminate()
    assert len(seen) == 4
    assert not any(secret.encode() in text for text in seen)


def test_nohup_is_respected():
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PARENT.format(
        code=UNTIL_ORPHANED
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            parent.wait(0.3)
        parent.terminate()
        assert parent.wait(5) == 0
