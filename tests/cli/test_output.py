"""What people read. Whoever wrote a piece of it, nothing in it can steer their terminal."""

from datetime import datetime, timezone

import pytest
from haltwire_cli.output import (
    ago,
    ahead,
    clock,
    count,
    due,
    escape,
    facts,
    listed,
    milliseconds,
    quantity,
    span,
    stamp,
    table,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines\ttab", "two\\nlines\\ttab"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("Grüße, 世界 🚀", "Grüße, 世界 🚀"),
        ("\ud800", "\\ud800"),
        (None, "None"),
    ],
)
def test_control_characters_are_spelled_out(text, shown):
    assert escape(text) == shown


@given(st.text())
def test_whatever_comes_stays_one_visible_line(text):
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    shown.encode()


def test_a_table_is_aligned_and_safe():
    shown = table(["A", "LONG"], [["x\x1b", 1], ["世界", ""]])
    assert shown == "A      LONG\nx\\x1b  1\n世界"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.9, "59 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (90_000, "1 d")],
)
def test_spans(seconds, shown):
    assert span(seconds) == shown


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (None, "never"),
        ("2026-11-22T09:30:00Z", "just now"),
        ("2026-11-22T09:30:05Z", "just now"),
        ("2026-11-22T09:27:00Z", "3 min ago"),
    ],
)
def test_how_long_ago(moment, shown):
    assert ago(moment, NOW) == shown


def test_clock_is_utc():
    assert clock("2026-11-22T09:30:00.125000Z") == "2026-11-22 09:30:00Z"


def test_facts_are_one_short_line():
    assert facts({"batch": 22, "unit": "e-mails", "ok": True}) == "batch=22 unit=e-mails ok=true"
    assert len(facts({"x": "y" * 500})) == 60
    assert facts(None) == facts([]) == facts({}) == ""


def test_facts_are_as_long_as_the_reader_has_room():
    assert len(facts({"x": "y" * 500}, 300)) == 300


def test_a_stamp_is_to_the_millisecond():
    assert stamp("2026-11-22T10:30:00.125999+01:00") == "2026-11-22 09:30:00.125Z"
    assert stamp(None) == "not known"


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        ("2026-11-22T09:30:29.4Z", "09:30:29Z, in 29 s"),
        ("2026-11-22T23:30:00Z", "23:30:00Z, in 14 h"),
        ("2026-11-24T09:30:00Z", "2026-11-24 09:30:00Z, in 2 d"),
        ("2026-11-22T09:29:00Z", "09:29:00Z"),
    ],
)
def test_when_something_is_due(moment, shown):
    assert due(moment, NOW) == shown


def test_how_long_until():
    assert ahead("2026-11-22T09:45:30Z", NOW) == "in 15 min"
    assert ahead("2026-11-22T09:29:00Z", NOW) == "now"


def test_words_for_lists_numbers_and_times():
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert [count(n, "byte") for n in (0, 1, 1234)] == ["0 bytes", "1 byte", "1,234 bytes"]
    assert [quantity(n) for n in (6074.0, 0.5)] == ["6,074", "0.50"]
    assert [milliseconds(n) for n in (None, 6.12, 1234.0)] == [
        "an unknown time",
        "6.1 ms",
        "1.23 s",
    ]
