"""The log held against what was exported of it: rewritten, shortened, or still the same and longer."""

from __future__ import annotations

import io
import json

import click
import pytest
from haltwire_cli.anchor import Anchor, compare, lines_of, read_export


def row(seq: int, digest: str = "a", **more: object) -> dict:
    return {"seq": seq, "hash": digest * 64, "reason": "why", **more}


def text(*rows: dict) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in rows)


KEPT = [row(1), row(2), row(3)]
LOGS = {
    "the same": (KEPT, Anchor(3)),
    "longer": ([*KEPT, row(4), row(5)], Anchor(3)),
    "cut off": (KEPT[:2], Anchor(2, 3, "removed")),
    "empty": ([], Anchor(0, 1, "removed")),
    "an event left out": ([row(1), row(3)], Anchor(1, 2, "removed")),
    "rewritten from the second on": ([row(1), row(2, "b"), row(3, "c")], Anchor(1, 2, "changed")),
    "all of it rewritten": ([row(1, "b"), row(2, "b"), row(3, "b")], Anchor(0, 1, "changed")),
    "a text changed, its hash kept": (
        [row(1), row(2, reason="other"), row(3)],
        Anchor(1, 2, "changed"),
    ),
}


@pytest.mark.parametrize(("log", "anchor"), LOGS.values(), ids=LOGS)
def test_compare(log, anchor):
    assert compare(KEPT, lines_of([text(*log)])) == anchor
    assert anchor.is_same == (anchor.first_different is None)


def test_an_export_of_a_part_is_held_against_that_part():
    assert compare([row(2)], lines_of([text(*KEPT)])) == Anchor(2)


def test_lines_come_whole_however_they_are_cut():
    whole = text(*KEPT)
    pieces = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    assert list(lines_of(pieces)) == whole.splitlines()
    assert list(lines_of([b"a\nb"])) == [b"a", b"b"]


def test_an_export_is_read():
    assert read_export(io.BytesIO(text(*KEPT))) == KEPT


NOT_EXPORTS = {
    "nothing": (b"", "holds no event"),
    "text": (b"hello\n", "line 1"),
    "cut off in a line": (text(*KEPT)[:-9], "line 3"),
    "no hash": (b'{"seq": 1}\n', "line 1"),
    "out of order": (text(row(2), row(1)), "line 2"),
    "twice": (text(row(1), row(1)), "line 2"),
    "a list": (b"[1]\n", "line 1"),
    "a seq that is none": (b'{"seq": true, "hash": "a"}\n', "line 1"),
    "a bottomless pit": (b"[" * 100_000, "line 1"),
}


@pytest.mark.parametrize(("content", "says"), NOT_EXPORTS.values(), ids=NOT_EXPORTS)
def test_what_is_no_export_is_a_usage_error(content, says):
    with pytest.raises(click.BadParameter, match=says):
        read_export(io.BytesIO(content))
