"""Wrong keys and agents' calls: a few plain answers for each source, bounded memory, and nothing about right ones."""

from __future__ import annotations

import pytest
from haltwire_control.attempts import BURST, PER_S, SOURCES_KEPT, Buckets, FailedAttempts, source_of


def test_a_source_gets_a_few_plain_answers_and_then_is_told_to_wait():
    attempts = FailedAttempts()
    assert [attempts.failed("192.0.2.1", 0.0) for _ in range(BURST)] == [None] * BURST
    assert attempts.failed("192.0.2.1", 0.0) == 1
    assert attempts.failed("192.0.2.2", 0.0) is None, "another source is another matter"


def test_time_gives_them_back_and_no_more_than_at_first():
    attempts = FailedAttempts()
    for _ in range(BURST + 5):
        attempts.failed("192.0.2.1", 0.0)
    assert attempts.failed("192.0.2.1", 1 / PER_S) is None
    assert attempts.failed("192.0.2.1", 1 / PER_S) is not None
    later = 1e6
    assert [attempts.failed("192.0.2.1", later) for _ in range(BURST)] == [None] * BURST
    assert attempts.failed("192.0.2.1", later) is not None


def test_many_sources_need_only_some_memory():
    attempts = FailedAttempts()
    for number in range(SOURCES_KEPT * 2):
        attempts.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(attempts._buckets._buckets) == SOURCES_KEPT


def test_a_steady_rate_passes_for_ever_and_a_faster_one_does_not():
    steady, fast = Buckets(10, 100), Buckets(10, 100)
    assert {steady.count("t", n / 99) for n in range(1000)} == {None}
    refused = sum(fast.count("t", n / 200) is not None for n in range(1000))
    assert 480 <= refused <= 500


SOURCES = {
    "192.0.2.1": "192.0.2.1",
    "::ffff:192.0.2.1": "192.0.2.1",
    "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
    "2001:db8:1:2::9%eth0": "2001:db8:1:2::/64",
    "": "unknown",
    "/run/socket": "unknown",
}


@pytest.mark.parametrize(("address", "source"), SOURCES.items(), ids=SOURCES)
def test_source(address, source):
    assert source_of(address) == source
