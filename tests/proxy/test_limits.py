"""Every limit is named, bounded and explained; what they come to fits the descriptors that there are."""

from dataclasses import fields, replace

import pytest
from haltwire_proxy.limits import (
    BURST_S,
    DEFAULTS,
    NAMES,
    RESERVED_DESCRIPTORS,
    Buckets,
    Limits,
    described,
    fitted,
    parse,
)


def test_nothing_said_is_the_defaults():
    assert parse(()) == DEFAULTS


def test_the_last_word_on_a_name_counts():
    limits = parse(("head_s=5", "agent_requests=9", "head_s=7"))
    assert limits == replace(DEFAULTS, head_s=7, agent_requests=9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head_s", "is not NAME=VALUE"),
        ("", "is not NAME=VALUE"),
        ("heads=5", "'heads' is no limit"),
        ("=5", "'' is no limit"),
        (" head_s=5", "' head_s' is no limit"),
        ("head_s=", "a whole number from 1 to 3600"),
        ("head_s=0", "a whole number from 1 to 3600"),
        ("head_s=-5", "a whole number from 1 to 3600"),
        ("head_s=5s", "a whole number from 1 to 3600"),
        ("head_s=1_0", "a whole number from 1 to 3600"),
        ("head_s=\u0661", "a whole number from 1 to 3600"),
        ("head_s=" + "9" * 5000, "a whole number from 1 to 3600"),
        ("head_bytes=0", "a whole number from 1024 to"),
    ],
)
def test_what_is_no_limit_is_said_to_be_none(text, words):
    with pytest.raises(ValueError) as error:
        parse((text,))
    assert words in str(error.value)


def test_a_wrong_name_is_answered_with_all_that_exist():
    with pytest.raises(ValueError) as error:
        parse(("heads=5",))
    assert all(name in str(error.value) for name in NAMES)


def test_every_limit_says_what_it_is():
    for one in fields(Limits):
        assert one.metadata["least"] <= one.default <= one.metadata["most"]
        assert f"{one.name}={one.default} {one.metadata['unit']} {one.metadata['says']}" in (
            described()
        )


@pytest.mark.parametrize("descriptors", [300, 1024, 20_000, 1 << 20])
def test_one_agent_leaves_room_for_another_whatever_the_system_grants(descriptors):
    """Two descriptors for each tunnel, and what names, dials and the control link need beside them."""
    limits = fitted(DEFAULTS, descriptors)
    assert 2 * limits.connections + RESERVED_DESCRIPTORS <= descriptors
    assert limits.agent_connections <= limits.connections / 2
    assert limits.waiting <= limits.connections / 2
    assert limits.address_waiting <= limits.waiting


def test_a_system_that_grants_next_to_nothing_still_lets_somebody_in():
    assert fitted(DEFAULTS, 10).connections == 2


def test_what_was_asked_for_is_kept_where_it_fits():
    asked = parse(("connections=50", "agent_connections=7", "waiting=9", "address_waiting=3"))
    assert fitted(asked, 20_000) == asked
    assert fitted(asked, 290).connections == 17


def test_a_bucket_lets_a_full_pool_through_and_then_the_rate():
    buckets = Buckets(20)
    assert all(buckets.take("a", 0.0) for _ in range(20 * BURST_S))
    assert not buckets.take("a", 0.0)
    assert sum(buckets.take("a", 0.5) for _ in range(100)) == 10
    assert sum(buckets.take("a", 1000.0) for _ in range(1000)) == 20 * BURST_S


def test_one_who_takes_all_takes_nothing_of_another():
    buckets = Buckets(1)
    assert [buckets.take("a", 0.0) for _ in range(BURST_S + 1)][-1] is False
    assert buckets.take("b", 0.0)


def test_who_is_refused_for_long_may_go_on_at_the_rate():
    """Whoever asks a thousand times a second gets as many as whoever asks once."""
    buckets = Buckets(2)
    taken = sum(buckets.take("a", step / 1000) for step in range(10_000))
    assert taken == 2 * BURST_S + 2 * 10 - 1


def test_buckets_of_those_who_have_gone_are_forgotten():
    buckets = Buckets(1)
    for number in range(5000):
        buckets.take(number, number * 0.1)
    assert len(buckets._left) <= 1000
