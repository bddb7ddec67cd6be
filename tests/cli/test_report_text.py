"""The page for the incident channel: it says what is proven, and nothing that others wrote can become markup."""

import re
from datetime import datetime, timezone

import pytest
from haltwire_cli.report_text import quoted, report_text
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.receipts import (
    drain,
    fenced,
    hold,
    in_flight,
    incident,
    instance,
    kill,
    lifted,
    proxy,
    receipt,
    silent,
)

NOW = datetime(2026, 11, 22, 9, 30, 10, tzinfo=timezone.utc)
HASH = "9f2c" * 16
OURS = {"h1", "h2", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "code"}
CLOSED = {f"/{tag}" for tag in OURS}
CODE_SPAN = re.compile(r"`[^`]*`")


def page(**more: object) -> str:
    return report_text(incident(**more), NOW)


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_who_why_when_and_how_fast_come_first():
    shown = page().split("\n\n")
    assert shown[0] == "# haltwire: cut of `agent://acme/prod/mailer`"
    assert shown[1] == "**Stopped in 14.2 ms, confirmed by every proxy.** In force."
    assert shown[2].splitlines() == [
        "- **Order**: `K0123456789AB`",
        "- **Who**: `key:ada`",
        "- **Why**: `broken link`",
        "- **Mode**: cut",
        "- **Requested**: 2026-11-22 09:30:00.000Z",
        "- **Halted**: 2026-11-22 09:30:00.014Z, 14.2 ms after the request",
        "- **Matched**: 1 agent, 1 instance",
    ]
    assert page().endswith("As of 2026-11-22 09:30:10.000Z, by `haltwire report K0123456789AB`.")


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({"receipt": None}, "**NOT PROVEN: no receipt is stored.** In force."),
        ({"receipt": receipt(durable=False)}, "**NOT STORED: a restart would forget the order.**"),
        (
            {"receipt": receipt(confirmed=False, unconfirmed_because="proxy_pending")},
            "**NOT PROVEN: some proxies have not answered.**",
        ),
        (
            {"receipt": receipt(confirmed=False, unconfirmed_because="outside_proxy")},
            "**NOT PROVEN: an instance never came through a proxy, so its traffic may go around.**",
        ),
        (
            {"receipt": drain(2), "kill": kill(mode="drain", grace_s=30.0)},
            "**Draining: what was open may finish until 09:30:30Z, in 20 s.** In force.",
        ),
        (
            {"receipt": drain(2), "kill": lifted(mode="drain", grace_s=30.0)},
            "**Drained only in part: the order was lifted before all had ended.** Lifted at",
        ),
        (
            {"receipt": receipt(proxies=[proxy(), fenced()])},
            "**Stopped in 14.2 ms, confirmed by every proxy that has a lease (1 silent without one).**",
        ),
        ({"receipt": drain(0)}, "**Stopped in 14.2 ms, confirmed by every proxy.**"),
        (
            {"receipt": drain(0, halted_in_ms=30_004.0, proxies=[proxy()])},
            "**Stopped in 30.00 s, confirmed by every proxy. 3 connections cut at the deadline.**",
        ),
        (
            {
                "receipt": hold(),
                "kill": kill(mode="hold", hold_until="2026-11-22T10:30:00.000000Z"),
            },
            "**Held in 14.2 ms, confirmed by every proxy: nothing moved.** In force. It becomes a cut at 10:30:00Z, in 59 min.",
        ),
        (
            {"kill": kill(expires_at="2026-11-22T09:45:10.000000Z")},
            "In force. It is lifted by itself at 09:45:10Z, in 15 min.",
        ),
        ({"kill": lifted()}, "Lifted at 2026-11-22 09:45:00.000Z by `key:bob`."),
    ],
)
def test_the_verdict_says_no_more_than_is_proven(more, verdict):
    assert verdict in page(**more)


def test_what_is_not_proven_has_no_time():
    unproven = receipt(confirmed=False, unconfirmed_because="proxy_pending", halted_at=None)
    assert "- **Halted**: not proven" in page(receipt=unproven | {"halted_in_ms": None})


def test_a_drain_says_how_long_and_a_second_order_when():
    shown = page(
        kill=kill(mode="drain", grace_s=30.0),
        receipt=drain(2, requested_at="2026-11-22T09:30:05.000000Z", escapable=True),
    )
    assert "- **Mode**: drain, with 30 s to finish" in shown
    assert "- **Requested again**: 2026-11-22 09:30:05.000Z" in shown
    assert "- **Escapable**: " in shown


def test_each_proxy_has_its_proof():
    gone = proxy(proxy_id="box-3", state="gone", latency_ms=None, connections_cut=None)
    shown = page(receipt=receipt(proxies=[proxy(), silent(), gone]))
    assert section(shown, "Proof").splitlines() == [
        "| Proxy | State | After | Cut | Bytes that may still arrive, at most |",
        "| --- | --- | --- | --- | --- |",
        "| `box-1` | confirmed | 6.1 ms | 3 | 0 |",
        "| `box-2` | SILENT: no answer | not known | not known | not known |",
        "| `box-3` | ended, with all its connections | not known | not known | 0 |",
    ]
    assert section(page(receipt=receipt(proxies=[])), "Proof") == "There was no proxy."


def test_what_a_hold_holds_and_a_drain_leaves_is_counted_per_proxy():
    assert "| `box-1` | confirmed | 6.1 ms | 3 | 4,096 |" in page(receipt=hold())
    shown = page(receipt=drain(2))
    assert "| Proxy | State | After | Cut | Left |" in shown
    assert "| `box-1` | confirmed | 6.1 ms | 0 | 2 |" in shown


def test_a_silent_proxy_has_no_counts_and_may_have_interrupted_more():
    shown = page(receipt=receipt(proxies=[fenced()]))
    assert (
        "| `box-2` | silent: its lease expired, it passes nothing without one | 1.06 s | not known | 4,096 |"
        in section(shown, "Proof")
    )
    assert "there may be more" in section(shown, "To reconcile")


def test_each_instance_has_what_it_said_and_did():
    rows = [
        instance(
            metadata={"batch": 22, "sent": 2147}, since_metadata={"completed": 1, "uncertain": 2}
        ),
        instance(
            instance="i-2",
            seen_at_proxy=None,
            last_byte_at=None,
            connections_cut=None,
            since_metadata={"completed": None, "uncertain": None},
        ),
        instance(instance="i-3"),
    ]
    totals = {"done": 2147, "remaining": 53, "unit": "emails", "sums": {}}
    shown = section(page(receipt=receipt(instances=rows, totals=totals)), "Instances")
    lines = shown.splitlines()
    assert lines[0] == (
        "| Instance | Seen at a proxy | Cut | Last byte | Last said | Completed since | Uncertain since |"
    )
    assert lines[2] == (
        "| `agent://acme/prod/mailer~i-7f3a` | 2026-11-22 09:29:00.000Z | 1 | 2026-11-22 09:29:59.875Z | `batch=22 sent=2147` | 1 | 2 |"
    )
    assert lines[3] == (
        "| `agent://acme/prod/mailer~i-2` | never | not known | not known | nothing | not read (tunnel) | not read (tunnel) |"
    )
    assert lines[4].endswith("| nothing | not known | not known |")
    assert lines[6] == "In total: 2,147 `emails` done, 53 remaining."
    assert section(page(), "Instances") == "None was known."


def test_who_gave_up_while_held_is_counted():
    shown = page(receipt=hold(instances=[instance(connections_held=2, lost_while_held=1)]))
    assert "| Instance | Seen at a proxy | Held | Gave up while held |" in shown
    assert "| 2026-11-22 09:29:00.000Z | 2 | 1 |" in shown


def test_every_uncertain_request_is_to_be_reconciled():
    flights = [
        in_flight(sent="whole", bytes_up=0, method="GET"),
        in_flight(sent="partly"),
        in_flight(sent="none"),
        in_flight(sent="unknown", method="CONNECT", path=None, bytes_up=None, bytes_up_acked=None),
    ]
    row = instance(in_flight=flights, since_metadata={"completed": None, "uncertain": None})
    shown = section(page(receipt=receipt(instances=[row])), "To reconcile")
    name = "`agent://acme/prod/mailer~i-7f3a`"
    began = "2026-11-22 09:29:58.000Z"
    assert shown.splitlines() == [
        "3 requests (1 whole, 1 partly, 1 unknown) may have been processed: look there before sending again.",
        "",
        "| Instance | Method | Host | Path | Started | Bytes | Sent |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| {name} | `GET` | `api.mail.test` | `/send` | {began} | no body | `whole` |",
        f"| {name} | `POST` | `api.mail.test` | `/send` | {began} | 4096 of 5120 bytes received there | `partly` |",
        f"| {name} | `CONNECT` | `api.mail.test` | not read (tunnel) | {began} | not read (tunnel) | `unknown` |",
        "",
        "Besides, 1 request had not begun to go out.",
        "",
        "Requests inside tunnels: not read (tunnel).",
    ]


def test_what_a_hold_froze_goes_on_with_the_resume():
    shown = page(receipt=hold(instances=[instance(in_flight=[in_flight()])]))
    assert section(shown, "To reconcile").startswith(
        "1 request (0 whole, 1 partly, 0 unknown) frozen half-way; a resume lets them go on."
    )


def test_where_nothing_is_to_be_reconciled_that_is_said_with_its_limits():
    assert section(page(), "To reconcile").startswith("No proxy knows of a request")
    unproven = receipt(confirmed=False, unconfirmed_because="proxy_pending")
    assert "there may be more" in section(page(receipt=unproven), "To reconcile")


def test_how_to_resume_while_it_is_in_force():
    assert section(page(), "Resume") == "`haltwire resume K0123456789AB` lifts the order."
    shown = page(kill=kill(mode="hold"), receipt=hold())
    assert section(shown, "Resume").endswith("lets every byte go on.")


def test_how_the_instances_are_since_the_resume():
    rows = [
        instance(instance="i-1", state="running", metadata={"batch": 22}),
        instance(instance="i-2", state="waiting"),
        instance(instance="i-3"),
    ]
    resumed = receipt(
        mode="resume", instances=rows, still_killed_by=["K9"], proxies=[proxy(), silent()]
    )
    shown = section(page(kill=lifted(), resume=resumed), "Resume")
    assert shown.splitlines() == [
        "Lifted at 2026-11-22 09:45:00.000Z by `key:bob`: `fixed`",
        "",
        "Part of it is still stopped by `K9`.",
        "",
        "Some proxies have not confirmed that they let it pass.",
        "",
        "| Instance | Since the resume |",
        "| --- | --- |",
        "| `agent://acme/prod/mailer~i-1` | running, resumed from checkpoint `batch=22` |",
        "| `agent://acme/prod/mailer~i-2` | waiting: not seen since the resume; it left no checkpoint |",
        "| `agent://acme/prod/mailer~i-3` | not known |",
    ]
    assert section(page(kill=lifted()), "Resume").count("\n") == 0


def test_notes_and_audit_events_are_whole():
    note = {"at": "2026-11-22T09:31:00.000000Z", "actor": "key:bob", "text": "told legal"}
    event = {
        "seq": 7,
        "event_type": "kill.issued",
        "at": "2026-11-22T09:30:00.000000Z",
        "actor": "key:ada",
        "hash": HASH,
    }
    shown = page(notes=[note], events=[event])
    assert section(shown, "Notes") == "- 2026-11-22 09:31:00.000Z `key:bob`: `told legal`"
    assert f"| 7 | `kill.issued` | 2026-11-22 09:30:00.000Z | `key:ada` | `{HASH}` |" in shown
    assert section(page(), "Notes") == "None. `haltwire note K0123456789AB TEXT` adds one."
    assert "No event is known." in page()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "`plain`"),
        ("a|b", "`a\\x7cb`"),
        ("a`b", "`a\\x60b`"),
        ("two\nlines", "`two\\nlines`"),
        ("\x1b[2J", "`\\x1b[2J`"),
        ("", "(empty)"),
        ("   ", "(empty)"),
    ],
)
def test_foreign_text_is_a_code_span(text, shown):
    assert quoted(text) == shown


EVIL = st.text(
    st.one_of(st.sampled_from("`|\\<>[]()!*_~#\n\r\t @:&;$"), st.characters()), max_size=30
)


@given(EVIL)
def test_nothing_ends_a_code_span(text):
    shown = quoted(text)
    assert shown == "(empty)" or re.fullmatch(r"`[^`|\r\n]+`", shown)
    assert len(shown.splitlines()) == 1


@given(EVIL)
def test_whatever_others_wrote_the_page_has_the_same_shape(evil):
    row = instance(
        agent_uri=evil,
        instance=evil,
        metadata={evil: evil},
        in_flight=[in_flight(method=evil, host=evil, path=evil)],
        state="running",
    )
    one = receipt(
        instances=[row],
        proxies=[proxy(proxy_id=evil)],
        totals={"done": 1, "remaining": 2, "unit": evil or None, "sums": {}},
    )
    event = {"seq": 1, "event_type": evil, "at": NOW.isoformat(), "actor": evil, "hash": evil}
    shown = page(
        kill=lifted(reason=evil, actor=evil, selector=evil)
        | {"lifted_reason": evil, "lifted_by": evil},
        receipt=one,
        resume=one | {"still_killed_by": [evil]},
        notes=[{"at": NOW.isoformat(), "actor": evil, "text": evil}],
        events=[event],
    )
    assert re.fullmatch(r"[\w\s#*|:.,;()-]*", CODE_SPAN.sub("", shown))
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(shown)
    tags = re.findall(r"<(/?\w+)[^>]*>", rendered)
    assert set(tags) - CLOSED <= OURS
    assert rendered.count("<table>") == 5
    assert rendered.count("<td>") == 5 + 7 + 7 + 2 + 5
