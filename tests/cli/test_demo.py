"""The demo's frame: how it begins, how it ends, and that it leaves nothing behind. tests/e2e/test_demo.py plays it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from haltwire_cli import demo as module
from haltwire_cli.demo import BATCH, LARGE, TOTAL, Stage, _expected, _Replica, demo
from haltwire_cli.demo_checks import Finding
from haltwire_cli.main import cli


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Where the demo keeps its files: what is left there afterwards was forgotten."""
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_a_command():
    assert cli.get_command(None, "demo") is demo


def test_the_large_messages_lie_within_a_batch():
    """Then the receipt has something to count since the last report."""
    assert all(1 < number < TOTAL and number % BATCH > 1 for number in LARGE.values())
    assert len(_expected()) == len(set(_expected())) == TOTAL * len(LARGE)


@pytest.mark.parametrize(
    ("line", "state", "refused"),
    [
        ('{"event": "refused", "detail": "agent_killed"}', "agent_killed", 1),
        ('{"event": "done", "detail": ""}', "done", 0),
        ('{"event": "unreported", "detail": "reset"}', "sending", 0),
        ("chatter", "sending", 0),
    ],
)
def test_what_a_replica_says_of_itself(line, state, refused):
    replica = _Replica("i-1")
    replica.heard(line)
    assert (replica.state, replica.refused) == (state, refused)


@pytest.mark.parametrize(("came_out", "code"), [(True, 0), (False, 1)])
def test_its_exit_code_is_the_verdict(folders, monkeypatch, came_out, code):
    monkeypatch.setattr(Stage, "play", lambda self: came_out)
    monkeypatch.setattr(Stage, "keep", lambda self: pytest.fail("nobody asked for that"))
    assert CliRunner().invoke(demo).exit_code == code
    assert not list(folders.iterdir())


def test_any_failed_finding_is_a_failed_demo(folders, monkeypatch):
    findings = [Finding(True, "Good."), Finding(False, "The provider read 1 bytes.")]
    monkeypatch.setattr(Stage, "play", lambda self: module._verdict(self._screen, findings))
    result = CliRunner().invoke(demo)
    assert result.exit_code == 1
    assert "The demo has FAILED. The provider read 1 bytes." in result.output


def test_it_says_what_keeps_up_from_starting(folders, monkeypatch):
    sulking = [sys.executable, "-S", "-c", "raise SystemExit('Error: no room here.')"]
    monkeypatch.setattr(module, "haltwire_argv", lambda *_: sulking)
    result = CliRunner().invoke(demo)
    assert result.exit_code == 1
    assert "`haltwire up` did not start: no room here." in result.output
    assert not list(folders.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_all_that_it_had_started(folders, monkeypatch, number):
    children = []

    def interrupted(stage: Stage) -> None:
        sleeper = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
        children.append(stage._children.start("one", sleeper))
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)
        pytest.fail("the signal did nothing")

    before = signal.getsignal(number)
    monkeypatch.setattr(Stage, "play", interrupted)
    result = CliRunner().invoke(demo)
    assert result.exit_code == 130
    assert "Interrupted" in result.output
    assert children[0].exit_code == 0
    assert signal.getsignal(number) is before
    assert not list(folders.iterdir())


def test_a_replica_that_fails_ends_the_demo(folders, monkeypatch):
    def play(stage: Stage) -> bool:
        failing = [sys.executable, "-S", "-c", "raise SystemExit('what a pity')"]
        replica = stage._replicas["i-1"] = _Replica("i-1")
        replica.child = stage._children.start("i-1", failing)
        stage._until(lambda _: False, 5.0, "")
        return True

    monkeypatch.setattr(Stage, "play", play)
    result = CliRunner().invoke(demo)
    assert result.exit_code == 1
    assert "replica i-1 ended with exit code 1: what a pity" in result.output


def test_the_replica_is_a_file_beside_it():
    assert Path(module.demo_replica.__file__).parent == Path(module.__file__).parent
