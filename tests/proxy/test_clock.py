"""The clocks."""

import time
from datetime import timedelta

from haltwire_proxy.clock import boottime, utc_now


def test_boot_time_runs_on_and_includes_sleep():
    first = boottime()
    assert first > 0
    assert boottime() >= first
    assert boottime() >= time.monotonic() - 1


def test_the_wall_clock_is_aware_and_utc():
    assert utc_now().utcoffset() == timedelta(0)
