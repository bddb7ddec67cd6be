"""Whatever the demo starts ends with it, and what went wrong is told in one line."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest
from haltwire_cli import demo_children
from haltwire_cli.demo_children import Children, haltwire_argv
from haltwire_cli.failures import Failure

UNTIL_LET_GO = "import sys; print('here', flush=True); sys.stdin.read(); print('bye', flush=True)"
STUBBORN = "import time; print('here', flush=True); time.sleep(60)"


@pytest.fixture
def children(tmp_path):
    children = Children(tmp_path)
    yield children
    children.end()


def program(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


class Listener:
    """Remembers the lines that it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.heard = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line.strip())
        self.heard.set()


def test_a_child_ends_when_it_is_let_go(children):
    listener = Listener()
    child = children.start("one", program(UNTIL_LET_GO), listener)
    assert listener.heard.wait(5)
    assert child.exit_code is None
    children.end()
    assert child.exit_code == 0
    assert listener.lines == ["here", "bye"]
    children.end()


def test_one_that_does_not_end_is_killed(children, monkeypatch):
    monkeypatch.setattr(demo_children, "_END_S", 0.1)
    listener = Listener()
    child = children.start("one", program(STUBBORN), listener)
    assert listener.heard.wait(5)
    children.end()
    assert child.exit_code == -signal.SIGKILL


def test_a_guarded_one_needs_not_look_at_its_input(children):
    child = children.start_guarded("one", program(STUBBORN))
    started = time.monotonic()
    children.end()
    assert child.exit_code == 128 + signal.SIGTERM
    assert time.monotonic() - started < demo_children._END_S


def test_the_first_one_stays_until_the_others_have_ended(children):
    order: list[str] = []
    for name in ("first", "second", "third"):
        children.start(name, program(UNTIL_LET_GO), lambda line, n=name: order.append(n + line))
    children.end()
    assert order[-1] == "firstbye\n"


def test_what_it_complained_of_last(children):
    child = children.start(
        "one", program("import sys; sys.stderr.write('a\\nwhat is wrong\\n\\n')")
    )
    child.process.wait()
    assert child.complaint() == "what is wrong"
    assert children.start("two", program("")).complaint() == "it said nothing"


def test_commands_are_those_of_this_installation(children):
    assert children.haltwire("--version").startswith("haltwire, version ")


def test_a_command_that_fails_is_told_in_one_sentence(children):
    with pytest.raises(Failure) as failure:
        children.haltwire("list")
    assert failure.value.exit_code == 1
    told = failure.value.format_message()
    assert told.startswith("`haltwire list` ended with exit code 1: no haltwire runs on ")
    assert str(children.data_dir) in told


def test_our_variables_do_not_reach_them(tmp_path, monkeypatch):
    """A demo in a shell that is set up for a real fleet must not kill anybody there."""
    monkeypatch.setenv("HALTWIRE_URL", "https://control.example")
    monkeypatch.setenv("HALTWIRE_API_KEY", "hwk_of_the_fleet")
    children = Children(tmp_path)
    listener = Listener()
    code = "import os; print(sorted(v for v in os.environ if v.startswith('HALTWIRE_')))"
    children.start("one", program(code), listener)
    assert listener.heard.wait(5)
    children.end()
    assert listener.lines == ["['HALTWIRE_DATA_DIR']"]


def test_the_command_line_is_run_by_the_same_python():
    assert haltwire_argv("list") == [sys.executable, "-m", "haltwire_cli", "list"]
