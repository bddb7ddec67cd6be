"""kill and resume: what is asked, what is said, and the exit code that a script can act on."""

import subprocess
import sys

import pytest
from support.receipts import drain, receipt

MAILER = "agent://acme/prod/mailer"
KILL, RESUME = "/v1/mesh/kill", "/v1/mesh/resume"
ASKED = {"mode": "cut", "wait_s": 0.5}


@pytest.fixture(autouse=True)
def stops(control):
    control.will("POST", KILL, receipt())
    control.will("POST", RESUME, receipt(mode="resume", lifted=["K0123456789AB"]))
    control.knows(MAILER, "agent://acme/dev/tester", "agent://other/dev/tester")


@pytest.mark.parametrize(
    ("typed", "selector"),
    [
        ("agent://acme/prod/mailer", MAILER),
        ("acme/prod/mailer", MAILER),
        ("acme.prod.mailer", MAILER),
        ("mailer", MAILER),
        ("mailer~i-1", f"{MAILER}~i-1"),
        ("acme/prod/*", "agent://acme/prod/*"),
        ("acme.**", "agent://acme/**"),
        ("**", "agent://**"),
        ("--all", "agent://**"),
    ],
)
def test_a_selector_may_be_typed_in_short(haltwire, control, typed, selector):
    assert haltwire("kill", typed).exit_code == 0
    assert control.last == ("POST", KILL, {}, {"selector": selector, **ASKED})


def test_reason_and_wait_travel(haltwire, control):
    haltwire("kill", MAILER, "--reason", "broken link", "--wait", "100ms")
    assert control.last[3] == {
        "selector": MAILER,
        "reason": "broken link",
        "mode": "cut",
        "wait_s": 0.1,
    }


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (("--mode", "drain"), {"mode": "drain", "grace_s": 30.0}),
        (("--mode", "drain", "--grace", "5m"), {"mode": "drain", "grace_s": 300.0}),
        (("--mode", "hold"), {"mode": "hold"}),
        (("--mode", "hold", "--hold-limit", "1h"), {"mode": "hold", "hold_limit_s": 3600.0}),
        (("--expires", "1d"), {"ttl_s": 86_400.0}),
        (("--dry-run",), {"dry_run": True}),
    ],
)
def test_how_to_stop_travels(haltwire, control, arguments, body):
    control.will("POST", KILL, receipt())
    assert haltwire("kill", MAILER, *arguments).exit_code == 0
    assert control.last[3] == {"selector": MAILER, **ASKED, **body}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name one agent or selector, or say --all"),
        (("mailer", "--all"), "name one agent or selector, or say --all"),
        (("tester",), "could be agent://acme/dev/tester, agent://other/dev/tester"),
        (("nobody",), "no agent ends in 'nobody': type it in full"),
        (("mail*",), "a glob needs its place"),
        (("ACME/prod",), "is no selector segment"),
        ((MAILER, "--wait", "2d"), "is not between 0s and 24h"),
        ((MAILER, "--mode", "stun"), "is not one of 'cut', 'drain', 'hold'"),
        ((MAILER, "--grace", "5s"), "say --mode drain, or leave --grace out"),
        ((MAILER, "--mode", "hold", "--grace", "5s"), "say --mode drain"),
        ((MAILER, "--hold-limit", "1h"), "say --mode hold, or leave --hold-limit out"),
        ((MAILER, "--mode", "drain", "--hold-limit", "1h"), "say --mode hold"),
        ((MAILER, "--expires", "0"), "is not between 1s and 365d"),
    ],
)
def test_what_is_not_clear_stops_nobody(haltwire, control, arguments, words):
    result = haltwire("kill", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert all(method == "GET" for method, *_ in control.calls)


def test_a_viewers_key_may_not_kill(haltwire, control):
    control.will("POST", KILL, {"error": {"message": "a viewer may not kill"}}, 403)
    result = haltwire("kill", MAILER)
    assert result.exit_code == 4
    assert result.stderr == "Error: this key may not do that (a viewer may not kill).\n"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ((MAILER,), {"selector": MAILER}),
        (("mailer",), {"selector": MAILER}),
        (("K0123456789AB",), {"kill_id": "K0123456789AB"}),
        (("--all",), {"selector": "agent://**"}),
        ((MAILER, "--carve-out"), {"selector": MAILER, "carve_out": True}),
        ((MAILER, "--reason", "fixed"), {"selector": MAILER, "reason": "fixed"}),
    ],
)
def test_what_a_resume_asks_for(haltwire, control, arguments, body):
    result = haltwire("resume", *arguments)
    assert result.exit_code == 0
    assert control.last == ("POST", RESUME, {}, {"wait_s": 2.0, **body})
    assert result.stdout == f"Resumed {MAILER}: lifted K0123456789AB.\n"


def test_a_kill_that_is_not_there(haltwire, control):
    control.will("POST", RESUME, {"error": {"message": "no such kill"}}, 404)
    assert haltwire("resume", "K0123456789AB").exit_code == 3


@pytest.mark.parametrize(
    ("typed", "sent"), [("caf\udce9", "caf�"), ("x" * 5000, "x" * 1000), ("grüße", "grüße")]
)
def test_no_reason_stands_between_a_person_and_a_stop(haltwire, control, typed, sent):
    assert haltwire("kill", "mailer", "--reason", typed).exit_code == 0
    assert control.last[3]["reason"] == sent


def test_each_json_answer_is_a_line_of_its_own(haltwire):
    assert haltwire("kill", "mailer", "--json").stdout.count("\n") == 1


def test_ctrl_c_while_it_waits_says_that_the_order_stands(haltwire, monkeypatch):
    def interrupted(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("haltwire_cli.api.Api.post", interrupted)
    result = haltwire("kill", MAILER)
    assert result.exit_code == 1
    assert "stopped waiting, but what was ordered stays so: see `haltwire kills`" in result.stderr


def test_ctrl_c_while_a_drain_is_followed_says_that_the_order_stands(
    haltwire, control, monkeypatch
):
    def interrupted(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    control.will("POST", KILL, drain(2))
    monkeypatch.setattr("haltwire_cli.api.Api.get", interrupted)
    result = haltwire("kill", MAILER, "--mode", "drain")
    assert result.exit_code == 1
    assert "stopped waiting, but what was ordered stays so" in result.stderr


def test_what_tells_of_an_order_is_not_loaded_before_it_has_gone_out():
    code = "import sys, haltwire_cli.orders; sys.exit('haltwire_cli.conclusion' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
