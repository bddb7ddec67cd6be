"""What people read. Whoever wrote a piece of it, nothing in it can steer their terminal."""

from datetime import datetime, timezone

import pytest
from haltwire_cli.output import ago, clock, escape, facts, kill_text, resume_text, span, table
from hypothesis import given
from hypothesis import strategies as st
from support.receipts import in_flight, instance, receipt

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


def test_a_confirmed_kill():
    assert kill_text(receipt()).splitlines() == [
        "Stopped agent://acme/prod/mailer in 14.2 ms: every proxy has confirmed it.",
        "  proxy box-1: stopped it after 6.1 ms, cut 3 connections",
        "In force as K0123456789AB for agent://acme/prod/mailer; `haltwire resume K0123456789AB` lifts it.",
    ]


def test_an_instance_says_what_it_had_done_and_what_is_uncertain():
    shown = kill_text(
        receipt(
            instances=[
                instance(
                    metadata={"batch": 22, "sent": 2147},
                    since_metadata={"completed": 1, "uncertain": 1},
                    in_flight=[in_flight()],
                )
            ],
            totals={"done": 6074, "remaining": 43926, "unit": "emails", "sums": {}},
        )
    )
    for line in (
        "  instance i-7f3a: cut 1 connection, last byte at 09:29:59.875Z",
        "    last said: batch=22 sent=2147",
        "    since then: 1 request completed, 1 uncertain: look there before sending again",
        "    in flight: POST api.mail.test/send, 4096 of 5120 bytes received there, sent partly",
        "  in total: 6,074 emails done, 43,926 remaining",
    ):
        assert line in shown.splitlines()


def test_a_request_without_a_body_says_so():
    flight = in_flight(method="GET", bytes_up=0, bytes_up_acked=0, sent="whole")
    shown = kill_text(receipt(instances=[instance(in_flight=[flight])]))
    assert "in flight: GET api.mail.test/send, no body, sent whole" in shown


def test_what_a_tunnel_hides_is_not_zero():
    shown = kill_text(
        receipt(
            instances=[
                instance(
                    since_metadata={"completed": None, "uncertain": None},
                    in_flight=[
                        in_flight(
                            method="CONNECT",
                            path=None,
                            bytes_up=None,
                            bytes_up_acked=None,
                            sent="unknown",
                        )
                    ],
                )
            ]
        )
    )
    assert "in all: requests not read (tunnel)" in shown
    assert (
        "in flight: CONNECT api.mail.test (path not read: tunnel), sent: not read (tunnel)" in shown
    )
    assert " 0 " not in shown


@pytest.mark.parametrize(
    ("because", "more", "words"),
    [
        ("no_agent", {}, "no agent by that name has been seen"),
        ("no_proxy", {"proxies": []}, "NOT PROVEN: no proxy is running"),
        (
            "outside_proxy",
            {"instances": [instance(seen_at_proxy=None, stopped_by=None)]},
            "NOT PROVEN: i-7f3a of agent://acme/prod/mailer never came through a proxy",
        ),
        (
            "proxy_pending",
            {"proxies": [{"proxy_id": "box-2", "state": "pending"}]},
            "NOT PROVEN for agent://acme/prod/mailer: no answer yet from proxy box-2",
        ),
    ],
)
def test_what_is_not_proven_is_said_first_with_its_reason(because, more, words):
    shown = kill_text(receipt(confirmed=False, unconfirmed_because=because, **more))
    assert words in shown.splitlines()[0]


def test_of_an_agent_that_nobody_has_seen_nothing_was_stopped():
    shown = kill_text(receipt(confirmed=False, unconfirmed_because="no_agent"))
    assert "proxy box-1: in force after 6.1 ms" in shown
    assert "stopped it" not in shown


def test_a_volatile_order_is_called_so():
    assert kill_text(receipt(ok=False, durable=False)).startswith("NOT STORED")


def test_similar_names_and_escapes_are_told():
    shown = kill_text(
        receipt(
            confirmed=False,
            unconfirmed_because="no_agent",
            escapable=True,
            did_you_mean=["agent://acme/prod/mailer2", "agent://acme/prod/mail"],
        )
    )
    assert "Did you mean agent://acme/prod/mailer2 or agent://acme/prod/mail?" in shown
    assert "could take another instance name" in shown


def test_no_word_of_ours_is_jargon():
    shown = kill_text(receipt(revision=41)) + resume_text(receipt(revision=42, lifted=["K1"]))
    assert "epoch" not in shown
    assert "revision" not in shown


def test_a_receipt_cannot_steer_a_terminal():
    evil = "\x1b]0;x\x07"
    shown = kill_text(
        receipt(
            kill_id=evil,
            selector=evil,
            did_you_mean=[evil],
            proxies=[{"proxy_id": evil, "state": evil}],
            instances=[
                instance(
                    agent_uri=evil,
                    instance=evil,
                    metadata={evil: evil},
                    in_flight=[in_flight(method=evil, host=evil, path=evil, sent=evil)],
                )
            ],
            totals={"done": 1, "remaining": None, "unit": evil},
        )
    )
    assert "\x1b" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"lifted": ["K1", "K2"]}, "Resumed agent://acme/prod/mailer: lifted K1 and K2."),
        ({"lifted": []}, "Nothing was stopping agent://acme/prod/mailer."),
        (
            {"lifted": [], "still_killed_by": ["K9"]},
            "agent://acme/prod/mailer is still stopped by K9: resume by id lifts a whole order, --carve-out only this part of it.",
        ),
    ],
)
def test_a_resume(more, shown):
    assert resume_text(receipt(**more)) == shown


def test_a_resume_names_who_has_not_taken_it_up():
    shown = resume_text(receipt(lifted=["K1"], proxies=[{"proxy_id": "box-2", "state": "pending"}]))
    assert shown.endswith("Not confirmed yet by proxy box-2.")


def test_a_silent_proxy_does_not_hide_that_nobody_has_that_name():
    nobody = {"agents": 0, "instances": 0, "proxies": 1}
    shown = kill_text(receipt(confirmed=False, unconfirmed_because="proxy_pending", matched=nobody))
    assert "no agent by that name has been seen" in shown
