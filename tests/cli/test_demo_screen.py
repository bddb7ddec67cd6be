"""The demo is read on terminals and in logs; either way the numbers are the provider's."""

from __future__ import annotations

import io

import pytest
from haltwire_cli import demo_screen
from haltwire_cli.demo_checks import Books, Finding, HalfRead
from haltwire_cli.demo_screen import Row, Screen, plain_line, rows_of
from rich.console import Console

BOOKS = Books({"i-1": 12}, half_read=(HalfRead("i-2", "i-2-000003", 1_500_000, 3_000_000),))
STATES = {"i-1": "sending", "i-2": "sending"}


def screen(*, terminal: bool) -> tuple[Screen, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, color_system=None)
    return Screen(console), written


def test_a_row_says_what_the_provider_has_of_each():
    assert rows_of(BOOKS, 24, STATES) == [
        Row("i-1", 12, 0.5, "sending"),
        Row("i-2", 0, 0.0, "1,500,000 of 3,000,000 bytes read"),
    ]


def test_a_share_is_never_more_than_all():
    assert rows_of(BOOKS, 10, {"i-1": "done"})[0].share == 1.0


def test_on_one_line():
    line = plain_line(rows_of(BOOKS, 24, {"i-1": "sending"}))
    assert line == "the provider has accepted 12 from i-1 (sending)"


def test_lines_are_printed_as_they_are():
    """What looks like markup, a number or a long line is left alone."""
    shown, written = screen(terminal=False)
    shown.say("[bold]2 of 3[/bold] " + "x" * 200, indent=2)
    shown.command("list")
    assert written.getvalue() == f"  [bold]2 of 3[/bold] {'x' * 200}\n$ haltwire list\n"


@pytest.mark.parametrize(("ok", "word"), [(True, "ok  "), (False, "FAILED  ")])
def test_a_finding_begins_with_its_verdict(ok, word):
    shown, written = screen(terminal=False)
    shown.finding(Finding(ok, "All is well."))
    assert written.getvalue().startswith(word)
    assert written.getvalue().endswith("All is well.\n")


def test_in_a_log_progress_is_a_line_now_and_then(monkeypatch):
    shown, written = screen(terminal=False)
    accepted = iter([1, 2, 2, 3])
    clock = iter([0.0, 0.5, 1.0, 1.0, 2.5, 4.0, 4.0])
    monkeypatch.setattr(demo_screen.time, "monotonic", lambda: next(clock))
    with shown.progress(lambda: [Row("i-1", next(accepted), 0.1, "sending")]) as tell:
        for _ in range(4):
            tell()
    said = [line.split(" ")[6] for line in written.getvalue().splitlines()]
    assert said == ["2", "3"]


def test_on_a_terminal_progress_is_redrawn_and_goes():
    shown, written = screen(terminal=True)
    with shown.progress(lambda: [Row("i-1", 1_234, 0.5, "sending")]) as tell:
        tell()
        shown.say("meanwhile")
    text = written.getvalue()
    assert "1,234" in text
    assert "━" * 30 in text
    assert "meanwhile" in text
    assert "\x1b[2K" in text
