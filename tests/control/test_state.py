"""The state's values say what proxies and processes are told of them."""

from __future__ import annotations

from datetime import datetime, timezone

from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.state import Order, ProxyRecord, State, Token

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
MAILER = Selector.parse("agent://acme/prod/mailer")


def test_a_token_rule_tells_all_but_who_made_it():
    rule = Token("T1", "d" * 64, MAILER, "intercept", NOW, "key:ada").rule
    assert (rule.token_id, rule.digest, rule.selector, rule.tls) == (
        "T1",
        "d" * 64,
        MAILER,
        "intercept",
    )


def test_a_process_is_more_than_its_pid():
    """Pids come round again; boot, namespace and start time make them one process."""
    one = ProxyRecord("w-1", "box", "boot", 7, "pid:[1]", 100, "1", NOW)
    other = ProxyRecord("w-1", "box", "boot", 7, "pid:[1]", 101, "1", NOW)
    assert one.process != other.process


def test_kills_are_the_orders_as_proxies_know_them():
    kill = Kill("K1", MAILER, "cut", None, "key:ada", NOW, 1)
    assert State("e", 1, (Order(kill, None, 1),)).kills == (kill,)
