"""The demo's checks can fail: each lie that a receipt or a provider could tell is found."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.receipts import (
    InFlight,
    InstanceState,
    Matched,
    ProxyState,
    Receipt,
    SinceMetadata,
    Totals,
)
from haltwire.wire.selectors import Selector
from haltwire_cli.demo_checks import Books, complete, reconciled, silent, stopped

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
NAMES = ("i-1", "i-2")


def request(sent: str = "partly") -> InFlight:
    return InFlight("POST", "localhost", "/send", NOW, 3_000_000, 1_600_000, 0, sent)


def instance(
    name: str, sent: int = 60, completed: int | None = 2, uncertain: int | None = 1, **more
):
    since = SinceMetadata(completed, uncertain)
    facts = {"metadata": {"batch": 6, "sent": sent}, "since_metadata": since}
    facts |= {"in_flight": (request(),), "seen_at_proxy": NOW, **more}
    return InstanceState("agent://demo/prod/mailer", name, **facts)


def receipt(*instances: InstanceState, **more) -> Receipt:
    facts = {
        "ok": True,
        "kill_id": "K0123456789AB",
        "selector": Selector.parse("agent://demo/prod/mailer"),
        "mode": "cut",
        "reason": None,
        "actor": "key:admin",
        "requested_at": NOW,
        "revision": 7,
        "durable": True,
        "matched": Matched(1, 2, 1),
        "confirmed": True,
        "unconfirmed_because": None,
        "halted_at": NOW,
        "halted_in_ms": 6.0,
        "still_killed_by": (),
        "escapable": False,
        "proxies": (ProxyState("p-1", "applied", 5.0, 2, 0),),
        "instances": instances or (instance("i-1"), instance("i-2")),
        "totals": Totals(),
    }
    return Receipt(**(facts | more))


def test_a_confirmed_kill_that_cut_every_replica_midway_is_a_stop():
    finding = stopped(receipt(), NAMES)
    assert finding.ok
    assert "All 1 proxies confirmed" in finding.sentence


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"confirmed": False, "unconfirmed_because": "proxy_pending"}, "proxy_pending"),
        ({"durable": False}, "not confirmed"),
        ({"ok": False}, "not confirmed"),
        ({"proxies": (ProxyState("p-1", "applied"), ProxyState("p-2", "gone"))}, "p-2"),
        ({"instances": (instance("i-1"),)}, "names i-1, but i-1, i-2 were running"),
        ({"instances": (instance("i-1"), instance("i-3"))}, "i-3"),
        ({"instances": (instance("i-1"), instance("i-2", in_flight=()))}, "half a message of i-2"),
        (
            {"instances": (instance("i-1", in_flight=(request("whole"),)), instance("i-2"))},
            "half a message of i-1",
        ),
    ],
    ids=["pending", "volatile", "not ok", "gone", "missing", "another", "idle", "whole"],
)
def test_anything_less_is_none(lie, words):
    finding = stopped(receipt(**lie), NAMES)
    assert not finding.ok
    assert words in finding.sentence


TRIED = {"i-1": 4, "i-2": 1}


def test_silence_is_no_byte_and_no_connection_while_everybody_tries():
    books = Books(bytes_read=5_000, connections=70)
    finding = silent(books, books, TRIED)
    assert finding.ok
    assert "read 0 bytes on 0 new connections" in finding.sentence


@pytest.mark.parametrize(
    ("later", "tried", "words"),
    [
        (Books(bytes_read=5_001, connections=70), TRIED, "read 1 bytes between"),
        (Books(bytes_read=5_000, connections=71), TRIED, "1 connections reached"),
        (Books(bytes_read=5_000, connections=70), {"i-1": 3, "i-2": 0}, "i-2 did not try"),
    ],
    ids=["a byte", "a connection", "nobody tried"],
)
def test_anything_else_is_no_silence(later, tried, words):
    finding = silent(Books(bytes_read=5_000, connections=70), later, tried)
    assert not finding.ok
    assert words in finding.sentence


@pytest.mark.parametrize("accepted", [62, 63], ids=["the least", "the uncertain one went through"])
def test_books_within_the_bounds_reconcile(accepted):
    finding = reconciled(receipt(), Books({"i-1": accepted, "i-2": 62}))
    assert finding.ok
    assert f"i-1 {accepted} of 62 to 63" in finding.sentence


@pytest.mark.parametrize(
    ("told", "accepted", "words"),
    [
        (receipt(), {"i-1": 61, "i-2": 62}, "62 to 63 messages, but the provider had accepted 61"),
        (receipt(), {"i-1": 62, "i-2": 64}, "had accepted 64"),
        (receipt(), {"i-1": 62}, "had accepted 0"),
        (receipt(), {"i-1": 62, "i-2": 62, "i-3": 1}, "nothing about i-3"),
        (receipt(instance("i-1", completed=None)), {"i-1": 62}, "does not know what i-1"),
        (receipt(instance("i-1", since_metadata=None)), {"i-1": 62}, "does not know what i-1"),
        (receipt(instances=()), {}, "says nothing about no instance"),
    ],
    ids=["too few", "too many", "none", "a stranger", "tunnel", "no figures", "empty receipt"],
)
def test_books_outside_do_not(told, accepted, words):
    finding = reconciled(told, Books(accepted))
    assert not finding.ok
    assert words in finding.sentence


def test_a_replica_that_never_reported_counts_from_nothing():
    silent_one = instance("i-1", completed=4, metadata=None)
    assert reconciled(receipt(silent_one), Books({"i-1": 4})).ok


DELIVERED = Books(deliveries={"i-1/1": 1, "i-1/2": 1, "i-2/1": 1})


def test_every_message_once_is_complete():
    finding = complete(DELIVERED, ["i-1/1", "i-1/2", "i-2/1"])
    assert finding.ok
    assert "all 3 messages" in finding.sentence


@pytest.mark.parametrize(
    ("books", "words"),
    [
        (replace(DELIVERED, deliveries={"i-1/1": 1, "i-2/1": 1}), "i-1/2 never reached"),
        (replace(DELIVERED, deliveries={**DELIVERED.deliveries, "i-2/1": 2}), "more than once"),
        (replace(DELIVERED, deliveries={**DELIVERED.deliveries, "i-9/1": 1}), "nobody meant"),
        (Books(), "never reached"),
    ],
    ids=["missing", "doubled", "strange", "nothing"],
)
def test_anything_else_is_not(books, words):
    finding = complete(books, ["i-1/1", "i-1/2", "i-2/1"])
    assert not finding.ok
    assert words in finding.sentence


def test_long_lists_of_messages_are_cut_short():
    finding = complete(Books(), [f"i-1/{number}" for number in range(1, 6)])
    assert finding.sentence == "i-1/1, i-1/2, i-1/3 and 2 more never reached the provider."
