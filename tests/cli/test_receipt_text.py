"""Receipts as sentences: nothing is called proven that is not, and nothing in them can steer a terminal."""

from datetime import datetime, timezone

import pytest
from haltwire_cli.receipt_text import (
    dry_run_text,
    lifted_text,
    order_text,
    resume_text,
    silent_proxies,
)
from haltwire_cli.receipt_text import kill_text as text_of_kill
from support.receipts import (
    drain,
    fenced,
    hold,
    in_flight,
    instance,
    kill,
    lifted,
    proxy,
    receipt,
    silent,
)

NOW = datetime(2026, 11, 22, 9, 30, 0, 500_000, timezone.utc)
MAILER = "agent://acme/prod/mailer"


def kill_text(receipt: dict, **more: object) -> str:
    return text_of_kill(receipt, NOW, **more)


def test_a_confirmed_kill():
    assert kill_text(receipt()).splitlines() == [
        "Stopped agent://acme/prod/mailer in 14.2 ms: every proxy has confirmed it.",
        "  proxy box-1: stopped it after 6.1 ms, cut 3 connections",
        "In force as K0123456789AB for agent://acme/prod/mailer; `haltwire resume K0123456789AB` lifts it.",
    ]


def test_a_silent_proxy_without_a_lease_is_told_as_that():
    shown = kill_text(receipt(proxies=[proxy(), fenced()], halted_in_ms=1064.2)).splitlines()
    assert shown[0] == (
        "Stopped agent://acme/prod/mailer in 1.06 s: every proxy has confirmed it or passes nothing more (1 silent, lease expired)."
    )
    assert shown[2].startswith("  proxy box-2: silent: its lease had expired after 1.06 s")


def test_a_drain_is_not_called_over_while_a_silent_proxy_may_go_on_with_it():
    one = drain(0, halted_at=None, halted_in_ms=None, proxies=[proxy(connections_live=0), fenced()])
    assert kill_text(one).startswith(f"Draining {MAILER}: ")
    late = datetime(2026, 11, 22, 9, 30, 31, tzinfo=timezone.utc)
    assert text_of_kill(one, late).startswith(
        f"Draining {MAILER}, but NOT PROVEN that it has ended"
    )


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
    texts = [kill_text(r) for r in (receipt(revision=41), drain(2), hold())]
    shown = "".join(texts) + resume_text(receipt(revision=42, lifted=["K1"]))
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


def test_a_drain_says_who_may_finish_and_until_when():
    assert kill_text(drain(2)).splitlines() == [
        f"Draining {MAILER}: new requests are refused; 2 connections may finish until 09:30:30Z, in 30 s.",
        "  proxy box-1: refuses what is new after 6.1 ms, 2 connections left",
        f"In force as K0123456789AB for {MAILER}; `haltwire resume K0123456789AB` lifts it.",
    ]


def test_a_drain_of_which_nothing_is_reported_yet_has_no_number():
    shown = kill_text(drain(0, halted_at=None, proxies=[proxy(connections_live=None)]))
    assert "what is open may finish until" in shown
    assert "left: not known" in shown
    assert " 0 " not in shown


def test_an_ended_drain_says_whether_its_deadline_cut_anything():
    by_itself = kill_text(drain(0, halted_in_ms=12_300.0))
    assert by_itself.startswith(f"Stopped {MAILER} in 12.30 s: drained, nothing is open any more;")
    late = [proxy(connections_live=0, connections_cut=2)]
    shown = kill_text(drain(0, halted_in_ms=30_006.0, proxies=late))
    assert shown.startswith(
        f"Stopped {MAILER} in 30.01 s: drained, 2 connections cut at the deadline;"
    )


def test_a_drain_whose_end_was_not_reported_is_not_called_ended():
    later = datetime(2026, 11, 22, 9, 31, tzinfo=timezone.utc)
    shown = text_of_kill(drain(2), later)
    assert "NOT PROVEN that it has ended: 2 connections should have been cut at 09:30:30Z." in shown


def test_a_hold_says_that_nothing_moves_and_what_had_left():
    shown = kill_text(
        hold(
            hold_until="2026-11-22T10:30:00.000000Z",
            expires_at="2026-11-22T09:45:00.000000Z",
            instances=[instance(connections_held=3, lost_while_held=1)],
        )
    )
    assert shown.splitlines() == [
        f"Held {MAILER} in 14.2 ms: frozen, nothing moves; every proxy has confirmed it.",
        "  proxy box-1: froze it after 6.1 ms, 3 connections held, up to 4,096 bytes had left already",
        "  instance i-7f3a: 3 connections held, 1 gave up while held, last byte at 09:29:59.875Z",
        f"In force as K0123456789AB for {MAILER}; `haltwire resume K0123456789AB` lets every byte go on.",
        "It becomes a cut at 10:30:00Z, in 60 min.",
        "It is lifted by itself at 09:45:00Z, in 15 min.",
    ]


def test_what_a_hold_does_not_know_is_not_zero():
    shown = kill_text(hold(proxies=[proxy(connections_held=None, residual_bytes_max=None)]))
    assert "held: not known, how much had left already is not known" in shown


def test_a_silent_proxy_is_called_so():
    shown = kill_text(receipt(confirmed=False, proxies=[proxy(), silent()]))
    assert "  proxy box-2: SILENT, no answer yet" in shown.splitlines()
    assert silent_proxies(receipt(proxies=[proxy(), silent()])) == ["proxy box-2"]


@pytest.mark.parametrize("one", [receipt(), drain(2), hold()])
def test_of_a_lifted_order_nothing_is_said_to_go_on(one):
    shown = kill_text(one, lifted=True)
    for wrong in ("In force", "moves", "may finish", "left,"):
        assert wrong not in shown


def test_a_dry_run_says_whom_it_would_stop_and_what_stops_them_already():
    rows = [
        instance(instance="i-1", connections_live=5, metadata={"batch": 2}),
        instance(instance="i-2", connections_live=None),
    ]
    matched = {"agents": 1, "instances": 2, "proxies": 1}
    shown = dry_run_text(
        receipt(dry_run=True, matched=matched, instances=rows, still_killed_by=["K1", "K2"])
    )
    assert shown.splitlines() == [
        "Nothing was ordered. Would stop: 1 agent, 2 instances, 5 live connections.",
        "  instance i-1: 5 live connections",
        "    last said: batch=2",
        "  instance i-2: connections not known",
        "All or part of this is stopped already by K1 and K2.",
    ]


def test_a_dry_run_over_nobody():
    nobody = {"agents": 0, "instances": 0, "proxies": 1}
    shown = dry_run_text(
        receipt(dry_run=True, mode="hold", matched=nobody, did_you_mean=["agent://acme/prod/mail"])
    )
    assert shown.splitlines() == [
        "Nothing was ordered. Would hold: 0 agents, 0 instances, 0 live connections.",
        f"No agent by that name has been seen: {MAILER}.",
        "Did you mean agent://acme/prod/mail?",
    ]


def test_a_resume_says_resumed_from_checkpoint_only_of_who_was_seen():
    rows = [
        instance(instance=f"i-{n}", state=state, metadata={"batch": n})
        for n, state in enumerate(("running", "waiting", "gone", None), start=1)
    ]
    shown = resume_text(receipt(mode="resume", lifted=["K1"], instances=rows)).splitlines()
    assert shown == [
        f"Resumed {MAILER}: lifted K1.",
        "  instance i-1: running, resumed from checkpoint batch=1",
        "  instance i-2: waiting: not seen since the resume; its checkpoint is batch=2",
        "  instance i-3: gone: a resume starts nothing that has ended; its checkpoint is batch=3",
        "`haltwire show K1` says later which of them were seen since.",
    ]


def test_a_resume_that_lifted_nothing_speaks_of_nobody():
    rows = [instance(state="running")]
    shown = resume_text(receipt(mode="resume", instances=rows, still_killed_by=["K9"]))
    assert "instance" not in shown


def test_an_order_and_its_end_in_a_sentence_each():
    assert order_text(kill(reason=None)) == (
        f"K0123456789AB: cut of {MAILER}, ordered by key:ada at 2026-11-22 09:30:00Z."
    )
    assert order_text(lifted()).splitlines()[1] == lifted_text(lifted())
    assert lifted_text(lifted()) == "Lifted at 2026-11-22 09:45:00Z by key:bob: fixed"


def test_what_people_wrote_about_an_order_cannot_steer_a_terminal():
    evil = "\x1b]0;x\x07"
    order = lifted(reason=evil, actor=evil) | {"lifted_reason": evil, "lifted_by": evil}
    rows = [instance(instance=evil, state="running", metadata={evil: evil})]
    resumed = receipt(mode="resume", lifted=[evil], instances=rows, did_you_mean=[evil])
    dry = receipt(dry_run=True, instances=rows, still_killed_by=[evil])
    shown = order_text(order) + resume_text(resumed) + dry_run_text(dry)
    assert "\x1b" not in shown
    assert "\x07" not in shown
