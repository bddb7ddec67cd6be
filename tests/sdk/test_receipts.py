"""Receipts: when an order is proven, and what the instances' progress adds up to."""

from datetime import datetime, timezone

import pytest
from haltwire.wire.codec import decode, encode
from haltwire.wire.receipts import (
    InstanceState,
    Matched,
    ProxyState,
    Receipt,
    Totals,
    totals_of,
    unconfirmed_because,
)
from haltwire.wire.selectors import Selector
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
MAILER = "agent://acme/prod/mailer"
SEEN = InstanceState(MAILER, "i-1", seen_at_proxy=NOON, stopped_by="proxy")
UNSEEN = InstanceState(MAILER, "i-2")


def proxies(*states):
    return [ProxyState(f"w{n}", state) for n, state in enumerate(states)]


CONFIRMATIONS = {
    "all applied": (proxies("applied", "applied"), [SEEN], 1, None),
    "one gone": (proxies("applied", "gone"), [SEEN], 1, None),
    "one pending": (proxies("applied", "pending"), [SEEN], 1, "proxy_pending"),
    "pending comes first": (proxies("pending"), [UNSEEN], 0, "proxy_pending"),
    "no proxy": ([], [SEEN], 1, "no_proxy"),
    "all gone": (proxies("gone"), [SEEN], 1, "no_proxy"),
    "nobody by that name": (proxies("applied"), [], 0, "no_agent"),
    "an agent without live instances": (proxies("applied"), [], 1, None),
    "an instance that goes around": (proxies("applied"), [SEEN, UNSEEN], 1, "outside_proxy"),
}


def test_what_a_receipt_of_an_earlier_version_does_not_say_is_nothing():
    """The store has receipts from before drains and holds."""
    newer = {"grace_s", "expires_at", "hold_until", "dry_run"}
    receipt = Receipt(
        True,
        "K1",
        Selector.parse(MAILER),
        "cut",
        None,
        "key:ada",
        NOON,
        1,
        True,
        Matched(1, 1, 1),
        True,
        None,
        NOON,
        1.0,
        (),
        False,
        (ProxyState("w-1", "applied"),),
        (SEEN,),
        Totals(),
    )
    document = encode(receipt)
    assert newer <= set(document)
    for name in newer:
        del document[name]
    for name in ("connections_live", "connections_held"):
        del document["proxies"][0][name], document["instances"][0][name]
    for name in ("lost_while_held", "state"):
        del document["instances"][0][name]
    assert decode(Receipt, document) == receipt


@pytest.mark.parametrize("name", CONFIRMATIONS)
def test_unconfirmed_because(name):
    states, instances, agents, reason = CONFIRMATIONS[name]
    assert unconfirmed_because(states, instances, agents) == reason


TOTALS = {
    "nobody said anything": ([], Totals()),
    "nothing but silence": ([None, {}], Totals()),
    "done": ([{"done": 3}, {"done": 4}], Totals(done=7, sums={"done": 7})),
    "sent stands for done": ([{"sent": 3}, {"sent": 4}], Totals(done=7, sums={"sent": 7})),
    "done before sent": (
        [{"done": 1, "sent": 3}],
        Totals(done=1, sums={"done": 1, "sent": 3}),
    ),
    "sent before processed before completed": (
        [{"completed": 5, "processed": 4}, {"sent": 3}],
        Totals(done=3, sums={"completed": 5, "processed": 4, "sent": 3}),
    ),
    "remaining is added up": (
        [{"done": 1, "remaining": 9}, {"done": 2, "remaining": 8}],
        Totals(done=3, remaining=17, sums={"done": 3, "remaining": 17}),
    ),
    "remaining beats agent_total": (
        [{"done": 1, "remaining": 5, "agent_total": 100}],
        Totals(done=1, remaining=5, sums={"done": 1, "remaining": 5}),
    ),
    "agent_total that all agree on": (
        [{"sent": 2147, "agent_total": 50000}, {"sent": 3927, "agent_total": 50000}],
        Totals(done=6074, remaining=43926, sums={"sent": 6074}),
    ),
    "agent_total beats total": (
        [{"done": 1, "agent_total": 10, "total": 4}],
        Totals(done=1, remaining=9, sums={"done": 1, "total": 4}),
    ),
    "agent_total that they do not agree on": (
        [{"done": 1, "agent_total": 10}, {"done": 1, "agent_total": 20}],
        Totals(done=2, sums={"done": 2}),
    ),
    "agent_total that one does not know": (
        [{"done": 1, "agent_total": 10}, {"done": 1}],
        Totals(done=2, sums={"done": 2}),
    ),
    "total of each": (
        [{"done": 1, "total": 10}, {"done": 2, "total": 20}],
        Totals(done=3, remaining=27, sums={"done": 3, "total": 30}),
    ),
    "total that one does not know": (
        [{"done": 1, "total": 10}, {"done": 2}],
        Totals(done=3, sums={"done": 3, "total": 10}),
    ),
    "more done than there is": (
        [{"done": 12, "total": 10}],
        Totals(done=12, remaining=0, sums={"done": 12, "total": 10}),
    ),
    "a total without anything done": ([{"total": 10}], Totals(sums={"total": 10})),
    "one unit": (
        [{"done": 1, "unit": "emails"}, {"done": 1, "unit": "emails"}],
        Totals(done=2, unit="emails", sums={"done": 2}),
    ),
    "two units": (
        [{"done": 1, "unit": "emails"}, {"done": 1, "unit": "pages"}],
        Totals(done=2, sums={"done": 2}),
    ),
    "names whose sum means nothing": (
        [{"id": 1, "batch": 22, "index": 5, "page": 3, "batch_id": 7, "lastPage": 2, "userId": 9}],
        Totals(),
    ),
    "names that only look like it": (
        [{"paid": 1, "pages": 2, "batches": 3, "bid": 4, "reindex": 5, "homepage": 6}],
        Totals(sums={"paid": 1, "pages": 2, "batches": 3, "bid": 4, "reindex": 5, "homepage": 6}),
    ),
    "what is no number": (
        [{"done": "3", "sent": True, "x": None, "y": [1], "z": float("nan"), "w": float("inf")}],
        Totals(),
    ),
    "numbers with a fraction": ([{"cost": 0.5}, {"cost": 0.25}], Totals(sums={"cost": 0.75})),
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name):
    metadata, expected = TOTALS[name]
    assert totals_of(metadata) == expected


VALUES = st.one_of(st.integers(-10, 10), st.floats(), st.text(max_size=3), st.none(), st.booleans())
NAMES = st.sampled_from(["done", "sent", "remaining", "agent_total", "total", "unit", "batch_id"])


@given(st.lists(st.none() | st.dictionaries(NAMES, VALUES), max_size=4))
def test_totals_of_anything_are_numbers(metadata):
    totals = totals_of(metadata)
    for number in (totals.done, totals.remaining, *totals.sums.values()):
        assert number is None or number == number
    assert "batch_id" not in totals.sums
