"""Following an order: each change is told once, and a control server that is away takes nothing back."""

import io
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from haltwire_cli import following
from haltwire_cli.api import Api
from haltwire_cli.following import Lines, changes, follow, is_complete, waiting_text
from haltwire_cli.home import Home
from support.receipts import drain, fenced, hold, incident, lifted, proxy, receipt, silent

KILL_PATH = "/v1/mesh/kills/K0123456789AB"
NOW = datetime(2026, 11, 22, 9, 30, 10, tzinfo=timezone.utc)
PENDING = {"confirmed": False, "unconfirmed_because": "proxy_pending"}


@pytest.fixture
def api(control) -> Api:
    return Api(control.url, "hwk_" + "k" * 43, Home(Path("/nowhere")), False)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(following, "OFTEN_S", 0.001)


def soon() -> float:
    return time.monotonic() + 10


@pytest.mark.parametrize(
    ("one", "complete"),
    [
        (receipt(), True),
        (hold(), True),
        (receipt(proxies=[proxy(), fenced()]), True),
        (drain(0, halted_at=None, proxies=[proxy(), fenced()]), False),
        (drain(0), True),
        (drain(2), False),
        (receipt(**PENDING), False),
        (hold(**PENDING), False),
        (receipt(confirmed=False, unconfirmed_because="outside_proxy"), True),
        (receipt(confirmed=False, unconfirmed_because="no_agent"), True),
        (drain(2, confirmed=False, unconfirmed_because="no_proxy"), True),
        (receipt(ok=False, durable=False, **PENDING), True),
        (drain(2, dry_run=True), True),
    ],
)
def test_when_nothing_more_is_to_come(one, complete):
    assert is_complete(one) is complete


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, receipt(), ["proxy box-1: confirmed after 6.1 ms"]),
        (None, receipt(proxies=[silent()]), ["proxy box-2: SILENT, no answer yet"]),
        (receipt(proxies=[silent()]), receipt(proxies=[silent()]), []),
        (
            receipt(proxies=[silent()]),
            receipt(proxies=[fenced()]),
            ["proxy box-2: silent: its lease had expired after 1.06 s, it passes nothing more"],
        ),
        (
            receipt(proxies=[silent()]),
            receipt(proxies=[proxy(proxy_id="box-2", latency_ms=612.0)]),
            ["proxy box-2: confirmed after 0.61 s"],
        ),
        (
            receipt(proxies=[silent()]),
            receipt(proxies=[silent() | {"state": "gone"}]),
            ["proxy box-2: has ended, with all its connections"],
        ),
        (drain(2), drain(2), []),
        (drain(2), drain(1), ["1 connection left"]),
        (drain(1), drain(0), ["no connection left"]),
        (
            drain(1),
            drain(0, halted_in_ms=30_004.0, proxies=[proxy(connections_cut=1)]),
            ["cut at the deadline: 1 connection"],
        ),
        (drain(2), receipt(), ["the order has become a cut"]),
        (hold(), hold(), []),
    ],
)
def test_each_change_is_told(before, after, told):
    assert list(changes(before, after)) == told


def test_what_a_proxy_calls_itself_cannot_steer_a_terminal():
    evil = "\x1b[2J"
    rows = [proxy(proxy_id=evil), silent(evil + "2")]
    told = "".join(changes(None, receipt(proxies=rows)))
    assert "\x1b" not in told + waiting_text(receipt(proxies=rows), NOW, 1.0)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (
            receipt(proxies=[silent()]),
            "waiting for proxy box-2, 3 s more; Ctrl-C leaves the order in force",
        ),
        (drain(2), "2 connections left, cut in 20 s; Ctrl-C leaves the order in force"),
        (drain(0, halted_at=None), "draining, cut in 20 s; Ctrl-C leaves the order in force"),
    ],
)
def test_what_is_waited_for(one, words):
    assert waiting_text(one, NOW, 3.2) == words


def test_it_is_asked_until_the_receipt_is_complete(api, control):
    answers = iter([drain(2), drain(1), drain(0)])
    control.will("GET", KILL_PATH, lambda *_: incident(receipt=next(answers)))
    out = io.StringIO()
    followed = follow(api, drain(2), soon(), Lines(out))
    assert followed.receipt == drain(0)
    assert followed.lifted is None
    assert out.getvalue().splitlines()[1:] == [
        "  proxy box-1: confirmed after 6.1 ms",
        "  1 connection left",
        "  no connection left",
    ]


def test_time_ends_it_with_what_is_known(api, control):
    control.will("GET", KILL_PATH, incident(receipt=drain(1)))
    followed = follow(api, drain(2), time.monotonic() + 0.1, Lines(None))
    assert followed.receipt == drain(1)


def test_nobody_waits_for_what_somebody_has_lifted(api, control):
    control.will("GET", KILL_PATH, incident(kill=lifted(), receipt=drain(1)))
    followed = follow(api, drain(2), soon(), Lines(None))
    assert followed.lifted == lifted()


def test_a_control_server_that_restarts_is_waited_for_and_told_of_once(api, control, capsys):
    answers = iter([{"error": {"message": "restarting"}}, {"error": {"message": "restarting"}}])

    def answer(*_: object) -> dict:
        try:
            return next(answers)
        except StopIteration:
            control.will("GET", KILL_PATH, incident(receipt=drain(0)))
            return {"error": {"message": "restarting"}}

    control.will("GET", KILL_PATH, answer, 503)
    assert follow(api, drain(2), soon(), Lines(None)).receipt == drain(0)
    assert capsys.readouterr().err == "Error: restarting.\n"


def test_a_receipt_that_is_not_stored_yet_is_the_one_that_was_answered(api, control):
    control.will("GET", KILL_PATH, incident(receipt=None))
    assert follow(api, drain(2), time.monotonic() + 0.05, Lines(None)).receipt == drain(2)


def test_on_a_terminal_a_line_is_drawn_again_and_leaves_nothing_behind():
    out = io.StringIO()
    lines = Lines(out, is_terminal=True)
    lines.draw("2 left")
    lines.say("1 left")
    lines.clear()
    assert out.getvalue() == "\r\x1b[?7l2 left\x1b[K\x1b[?7h\r\x1b[K1 left\n"


def test_on_a_pipe_only_lines_that_stay_are_written():
    out = io.StringIO()
    lines = Lines(out)
    lines.draw("2 left")
    lines.clear()
    assert out.getvalue() == ""
