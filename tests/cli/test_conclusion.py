"""What a kill or a resume came to: told as it becomes known, and an exit code that a script can act on."""

import json

import pytest
from support.receipts import drain, fenced, hold, incident, instance, lifted, proxy, receipt, silent

MAILER = "agent://acme/prod/mailer"
KILL, RESUME = "/v1/mesh/kill", "/v1/mesh/resume"
KILL_PATH = "/v1/mesh/kills/K0123456789AB"
NOBODY = {"agents": 0, "instances": 0, "proxies": 1}


@pytest.fixture(autouse=True)
def stops(control):
    control.will("POST", KILL, receipt())
    control.will("POST", RESUME, receipt(mode="resume", lifted=["K0123456789AB"]))


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        ({}, 0),
        (
            {
                "confirmed": False,
                "unconfirmed_because": "no_agent",
                "matched": NOBODY,
            },
            3,
        ),
        ({"confirmed": False, "unconfirmed_because": "no_proxy", "proxies": []}, 5),
        ({"confirmed": False, "unconfirmed_because": "proxy_pending"}, 5),
        (hold(), 0),
        ({"proxies": [proxy(), fenced()]}, 0),
        (drain(0, halted_at=None, proxies=[proxy(), fenced()]), 5),
        (drain(0), 0),
        (drain(2), 5),
        (
            {
                "confirmed": False,
                "unconfirmed_because": "outside_proxy",
                "instances": [instance(seen_at_proxy=None)],
            },
            5,
        ),
    ],
)
def test_the_exit_code_of_a_kill_says_what_is_proven(haltwire, control, answer, exit_code):
    control.will("POST", KILL, receipt(**answer))
    result = haltwire("kill", MAILER, "--wait", "0")
    assert result.exit_code == exit_code
    assert "In force as K0123456789AB" in result.stdout
    result = haltwire("kill", MAILER, "--wait", "0", "--json")
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == receipt(**answer)


def test_what_is_proven_at_once_costs_one_request(haltwire, control):
    for proven in (receipt(), hold(), drain(0)):
        control.calls.clear()
        control.will("POST", KILL, proven)
        haltwire("kill", MAILER)
        assert [method for method, *_ in control.calls] == ["POST"]


def fills(control, *receipts: dict, order: dict | None = None) -> None:
    """The first receipt is answered at once, each later one when it is asked for; the last stays."""
    first, *later = receipts
    left = iter(later)
    control.will("POST", KILL, first)
    documents = {"kill": order or incident()["kill"]}
    last = {"receipt": first}

    def answer(query: dict, body: object) -> dict:
        last["receipt"] = next(left, last["receipt"])
        return incident(**documents, **last)

    control.will("GET", KILL_PATH, answer)


def test_a_receipt_is_told_as_it_fills(haltwire, control):
    waiting = {"confirmed": False, "unconfirmed_because": "proxy_pending", "halted_at": None}
    one = receipt()["proxies"][0]
    fills(
        control,
        receipt(proxies=[one, silent()], **waiting),
        receipt(proxies=[one, silent()], **waiting),
        receipt(proxies=[one, one | {"proxy_id": "box-2", "latency_ms": 612.0}]),
    )
    result = haltwire("kill", MAILER)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:5] == [
        f"K0123456789AB: Ordered, but NOT PROVEN for {MAILER}: no answer yet from proxy box-2.",
        "  proxy box-1: confirmed after 6.1 ms",
        "  proxy box-2: SILENT, no answer yet",
        "  proxy box-2: confirmed after 0.61 s",
        f"Stopped {MAILER} in 14.2 ms: every proxy has confirmed it.",
    ]


def test_a_drain_is_followed_until_the_last_connection_has_ended(haltwire, control):
    fills(control, drain(2), drain(2), drain(1), drain(0))
    result = haltwire("kill", MAILER, "--mode", "drain")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"K0123456789AB: Draining {MAILER}")
    assert lines[1:5] == [
        "  proxy box-1: confirmed after 6.1 ms",
        "  1 connection left",
        "  no connection left",
        f"Stopped {MAILER} in 14.2 ms: drained, nothing is open any more; every proxy has confirmed it.",
    ]


def test_wait_ends_the_following_of_a_drain_and_nothing_is_called_stopped(haltwire, control):
    fills(control, drain(2))
    result = haltwire("kill", MAILER, "--mode", "drain", "--wait", "150ms")
    assert result.exit_code == 5
    assert "Stopped" not in result.stdout


def test_following_as_json_is_one_document_the_last_receipt(haltwire, control):
    fills(control, drain(2), drain(1), drain(0))
    result = haltwire("kill", MAILER, "--mode", "drain", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == drain(0)
    assert result.stdout.count("\n") == 1


def test_what_somebody_lifts_meanwhile_is_not_called_stopped(haltwire, control):
    fills(control, drain(2), drain(1), order=lifted(mode="drain"))
    result = haltwire("kill", MAILER, "--mode", "drain")
    assert result.exit_code == 5
    assert "Drained agent://acme/prod/mailer only in part" in result.stdout
    assert result.stdout.endswith("Lifted at 2026-11-22 09:45:00Z by key:bob: fixed\n")
    assert "In force" not in result.stdout


def test_a_weaker_order_than_the_one_in_force_is_told(haltwire):
    result = haltwire("kill", MAILER, "--mode", "hold")
    assert "You asked for a hold; a cut was in force before and stays." in result.stdout


@pytest.mark.parametrize(("matched", "exit_code"), [(receipt()["matched"], 0), (NOBODY, 3)])
def test_a_dry_run_orders_nothing_and_says_so(haltwire, control, matched, exit_code):
    because = {"confirmed": False, "unconfirmed_because": "dry_run", "kill_id": None}
    control.will("POST", KILL, receipt(dry_run=True, matched=matched, **because))
    result = haltwire("kill", MAILER, "--dry-run")
    assert result.exit_code == exit_code
    assert result.stdout.startswith("Nothing was ordered. Would stop: ")
    assert "In force" not in result.stdout


def test_an_order_that_cannot_be_stored_is_shown_and_fails(haltwire, control):
    answer = receipt(ok=False, durable=False) | {"error": {"code": "kill_not_durable"}}
    control.will("POST", KILL, answer, 503)
    result = haltwire("kill", MAILER)
    assert result.exit_code == 1
    assert result.stdout.startswith("NOT STORED")


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        ({"lifted": ["K1"]}, 0),
        ({"lifted": []}, 0),
        ({"lifted": [], "matched": NOBODY}, 3),
        ({"lifted": ["K1"], "still_killed_by": ["K2"]}, 6),
        ({"lifted": [], "still_killed_by": ["K2"]}, 6),
        ({"lifted": ["K1"], "confirmed": False, "unconfirmed_because": "proxy_pending"}, 5),
        ({"lifted": ["K1"], "confirmed": False, "unconfirmed_because": "no_proxy"}, 0),
    ],
)
def test_the_exit_code_of_a_resume(haltwire, control, answer, exit_code):
    control.will("POST", RESUME, receipt(mode="resume", **answer))
    assert haltwire("resume", MAILER).exit_code == exit_code


def test_a_resume_says_who_goes_on(haltwire, control):
    rows = [
        instance(instance="i-1", state="running", metadata={"batch": 22, "sent": 2147}),
        instance(instance="i-2", state="waiting", metadata={"batch": 9}),
    ]
    control.will("POST", RESUME, receipt(mode="resume", lifted=["K0123456789AB"], instances=rows))
    assert haltwire("resume", MAILER).stdout.splitlines() == [
        f"Resumed {MAILER}: lifted K0123456789AB.",
        "  instance i-1: running, resumed from checkpoint batch=22 sent=2147",
        "  instance i-2: waiting: not seen since the resume; its checkpoint is batch=9",
        "`haltwire show K0123456789AB` says later which of them were seen since.",
    ]


def test_a_carve_out_is_not_called_nothing(haltwire, control):
    """It lifts no order, and yet the agent goes on."""
    control.will("POST", RESUME, receipt(mode="resume", lifted=[]))
    shown = haltwire("resume", MAILER, "--carve-out").stdout
    assert shown == f"Resumed {MAILER}: excepted from every order that goes on stopping others.\n"
    assert haltwire("resume", MAILER).stdout == f"Nothing was stopping {MAILER}.\n"
