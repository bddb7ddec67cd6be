"""The lines of a receipt: every number says what it counts, and what nobody read is never 0."""

import pytest
from haltwire_cli.receipt_lines import (
    added,
    after_resume,
    confirmed_by,
    cut_at_deadline,
    drain_end,
    instance_lines,
    is_draining,
    proxy_lines,
    sent_text,
    since_text,
    stopped,
    totals_text,
    would_lose,
)
from support.receipts import drain, fenced, hold, in_flight, instance, proxy, receipt, silent

RESUMED_AT = "2026-11-22T09:45:00.000000Z"


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (receipt(), "proxy box-1: stopped it after 6.1 ms, cut 3 connections"),
        (
            receipt(proxies=[proxy(connections_cut=None)]),
            "proxy box-1: stopped it after 6.1 ms, cut: not known",
        ),
        (receipt(proxies=[silent()]), "proxy box-2: SILENT, no answer yet"),
        (
            receipt(proxies=[proxy(state="gone")]),
            "proxy box-1: has ended, with all its connections",
        ),
        (
            receipt(proxies=[fenced()]),
            "proxy box-2: silent: its lease had expired after 1.06 s, it passes nothing more, cut: not known, up to 4,096 bytes may still arrive from its kernel",
        ),
        (
            receipt(proxies=[fenced(latency_ms=None, residual_bytes_max=0)]),
            "proxy box-2: silent: its lease had expired, it passes nothing more, cut: not known",
        ),
        (
            hold(proxies=[fenced(residual_bytes_max=None)]),
            "proxy box-2: silent: its lease had expired after 1.06 s, it passes nothing more, held: not known, how much may still arrive from its kernel is not known",
        ),
        (
            drain(0, halted_at=None, proxies=[fenced(residual_bytes_max=0)]),
            "proxy box-2: silent: its lease had expired after 1.06 s, it passes nothing until it is back, left: not known",
        ),
        (receipt(proxies=[proxy(state="else")]), "proxy box-1: else"),
        (drain(1), "proxy box-1: refuses what is new after 6.1 ms, 1 connection left"),
        (
            drain(1, proxies=[proxy(connections_live=1, connections_cut=2)]),
            "proxy box-1: refuses what is new after 6.1 ms, 1 connection left, cut 2 connections",
        ),
        (drain(0), "proxy box-1: refuses what is new after 6.1 ms, cut 0 connections"),
        (
            hold(proxies=[proxy(connections_held=0, residual_bytes_max=0)]),
            "proxy box-1: froze it after 6.1 ms, 0 connections held, nothing was on its way",
        ),
        (
            hold(),
            "proxy box-1: froze it after 6.1 ms, 3 connections held, up to 4,096 bytes had left already",
        ),
    ],
)
def test_a_proxy_is_a_line(one, line):
    assert list(proxy_lines(one, lifted=False)) == [line]


@pytest.mark.parametrize(
    ("one", "more", "words"),
    [
        (receipt(), {"seen_at_proxy": None, "last_byte_at": None}, "never seen at a proxy"),
        (receipt(), {}, "cut 1 connection, last byte at 09:29:59.875Z"),
        (receipt(), {"connections_cut": None, "last_byte_at": None}, "cut: not known"),
        (
            drain(2),
            {"connections_live": 2, "connections_cut": 0, "last_byte_at": None},
            "2 connections left",
        ),
        (hold(), {"connections_held": 2, "last_byte_at": None}, "2 connections held"),
        (
            receipt(),
            {"lost_while_held": 2, "last_byte_at": None},
            "cut 1 connection, 2 gave up while held",
        ),
    ],
)
def test_what_an_order_did_to_an_instance(one, more, words):
    assert stopped(instance(**more), one, lifted=False) == words


@pytest.mark.parametrize(
    ("proxies", "words"),
    [
        ([proxy(), proxy(state="gone")], "every proxy has confirmed it"),
        (
            [proxy(), fenced(), fenced("box-3")],
            "every proxy has confirmed it or passes nothing more (2 silent, lease expired)",
        ),
        (
            [fenced()],
            "no proxy has answered, but none passes anything more (1 silent, lease expired)",
        ),
    ],
)
def test_who_is_silent_is_not_said_to_have_confirmed(proxies, words):
    assert confirmed_by(receipt(proxies=proxies)) == words


def test_instances_of_several_agents_say_whose_they_are():
    other = instance(agent_uri="agent://acme/prod/billing")
    lines = instance_lines(receipt(instances=[instance(), other]), lambda _: "there")
    assert list(lines) == [
        "instance agent://acme/prod/mailer i-7f3a: there",
        "instance agent://acme/prod/billing i-7f3a: there",
    ]


def test_an_instance_of_which_nothing_is_known_has_no_line():
    assert list(instance_lines(receipt(instances=[instance()]), lambda _: None)) == []


def test_how_far_an_instance_was_is_told_on_request():
    row = instance(metadata={"batch": 2}, in_flight=[in_flight()])
    one = receipt(instances=[row])
    assert len(list(instance_lines(one, lambda _: "there"))) == 3
    assert len(list(instance_lines(one, lambda _: "there", progress=False))) == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"state": "running", "metadata": {"batch": 22, "sent": 2147}},
            "running, resumed from checkpoint batch=22 sent=2147",
        ),
        ({"state": "running"}, "running, without a checkpoint"),
        (
            {"state": "running", "metadata": {"batch": 23}, "metadata_at": "2026-11-22T09:45:01Z"},
            "running, and has said since: batch=23",
        ),
        (
            {
                "state": "running",
                "connections_live": 2,
                "connections_held": 3,
                "lost_while_held": 1,
            },
            "running, without a checkpoint, 2 connections let go on, 3 connections held by another order, 1 gave up while held",
        ),
        (
            {"state": "waiting", "metadata": {"batch": 22}},
            "waiting: not seen since the resume; its checkpoint is batch=22",
        ),
        ({"state": "gone"}, "gone: a resume starts nothing that has ended; it left no checkpoint"),
        ({"state": None}, None),
    ],
)
def test_how_an_instance_is_after_a_resume(more, words):
    assert after_resume(instance(**more), RESUMED_AT) == words


def test_what_it_said_is_quoted_as_the_reader_needs_it():
    row = instance(state="running", metadata={"x": "y"})
    assert after_resume(row, RESUMED_AT, "<{}>".format) == "running, resumed from checkpoint <x=y>"
    assert totals_text({"done": 1, "remaining": None, "unit": "mails"}, "<{}>".format) == (
        "1 <mails> done, remaining: not known"
    )


def test_counts_that_nobody_read_are_not_zero():
    assert since_text({"completed": None, "uncertain": None}) == "requests not read (tunnel)"
    assert since_text({"completed": 0, "uncertain": 0}) == "0 requests completed"
    assert since_text({"completed": 1, "uncertain": 2}, held=True) == (
        "1 request completed, 2 frozen half-way"
    )
    assert would_lose(instance()) == "connections not known"
    assert would_lose(instance(connections_live=0)) == "0 live connections"
    assert totals_text({}) is None
    assert totals_text({"done": None, "remaining": 5}) == "5 remaining"
    assert added([{"n": None}, {"n": 2}, {}], "n") == 2
    assert added([{"n": None}], "n") is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "4096 of 5120 bytes received there"),
        ({"bytes_up_acked": None}, "5120 bytes sent"),
        ({"bytes_up": 0}, "no body"),
        ({"bytes_up": None, "bytes_up_acked": None}, "not read (tunnel)"),
    ],
)
def test_how_much_of_a_request_had_arrived(more, words):
    assert sent_text(in_flight(**more)) == words


def test_when_a_drain_has_ended():
    assert drain_end(drain(1)) == "2026-11-22T09:30:30.000000Z"
    assert is_draining(drain(1))
    assert not is_draining(drain(0))
    assert not is_draining(hold(halted_at=None))
    assert cut_at_deadline(drain(1)) == 0
    late = drain(0, halted_in_ms=30_001.0, proxies=[proxy(connections_cut=2), proxy(state="gone")])
    assert cut_at_deadline(late) == 5
    assert cut_at_deadline(drain(0, halted_in_ms=29_000.0, proxies=[proxy()])) == 0
