"""What a guard runs does not outlive the one who started the guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from haltwire_cli import demo_guard

SLEEPER = "import sys, time; print(1, flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


@contextmanager
def guard(*arguments: str):
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", demo_guard.__file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process


def command(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_its_exit_code_is_the_commands():
    with guard(*command("raise SystemExit(7)")) as process:
        assert process.wait() == 7


def test_a_signals_exit_code_is_the_shells():
    with guard(*command("import os; os.abort()")) as process:
        assert process.wait() == 128 + signal.SIGABRT


def test_the_command_ends_with_the_guards_input(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with guard("--remove", str(folder), *command(SLEEPER)) as process:
        process.stdout.readline()
        process.stdin.close()
        process.stdin = None
        assert process.wait(10) == 128 + signal.SIGTERM
    assert not folder.exists()


def test_the_command_ends_when_the_guard_is_told_to():
    with guard(*command(SLEEPER)) as process:
        process.stdout.readline()
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM


def test_the_folder_stays_when_the_command_ends_by_itself(tmp_path):
    """Whoever started it may want to read why."""
    with guard("--remove", str(tmp_path), *command("")) as process:
        assert process.wait() == 0
    assert tmp_path.exists()


def test_a_command_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(demo_guard, "_PATIENCE_S", 0.1)
    child = subprocess.Popen(command(STUBBORN), stdout=subprocess.PIPE)
    stop = demo_guard.threading.Event()
    with child:
        child.stdout.readline()
        stop.set()
        demo_guard._end(child, stop)
        assert child.wait(10) == -signal.SIGKILL


def test_the_command_ends_when_the_starter_is_killed(tmp_path):
    told = tmp_path / "pid"
    sleeper = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    starter = (
        "import subprocess, sys\n"
        f"subprocess.Popen({[sys.executable, '-I', '-S', demo_guard.__file__, *command(sleeper)]!r}, stdin=subprocess.PIPE).wait()"
    )
    with subprocess.Popen(command(starter)) as process:
        pid = _eventually(lambda: told.exists() and told.read_text())
        process.kill()
    _eventually(lambda: not Path(f"/proc/{pid}").exists())


def _eventually(condition):
    deadline = time.monotonic() + 10
    while not (value := condition()):
        assert time.monotonic() < deadline
        os.sched_yield()
    return value
