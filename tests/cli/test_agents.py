"""kill and resume: what is asked, what is said, and the exit code that a script can act on."""

import json
import signal
import subprocess
import sys

import pytest
from haltwire_cli.agents import _redraw
from support.receipts import agent, instance, receipt

MAILER = "agent://acme/prod/mailer"
KILL, RESUME = "/v1/mesh/kill", "/v1/mesh/resume"


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
    assert control.last == ("POST", KILL, {}, {"selector": selector, "wait_s": 2.0})


def test_reason_and_wait_travel(haltwire, control):
    haltwire("kill", MAILER, "--reason", "broken link", "--wait", "500ms")
    assert control.last[3] == {"selector": MAILER, "reason": "broken link", "wait_s": 0.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name one agent or selector, or say --all"),
        (("mailer", "--all"), "name one agent or selector, or say --all"),
        (("tester",), "could be agent://acme/dev/tester, agent://other/dev/tester"),
        (("nobody",), "no agent ends in 'nobody': type it in full"),
        (("mail*",), "a glob needs its place"),
        (("ACME/prod",), "is no selector segment"),
        ((MAILER, "--wait", "1h"), "is not between 0s and 30s"),
        ((MAILER, "--mode", "drain"), "No such option"),
    ],
)
def test_what_is_not_clear_stops_nobody(haltwire, control, arguments, words):
    result = haltwire("kill", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert all(method == "GET" for method, *_ in control.calls)


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        ({}, 0),
        (
            {
                "confirmed": False,
                "unconfirmed_because": "no_agent",
                "matched": {"agents": 0, "instances": 0, "proxies": 1},
            },
            3,
        ),
        ({"confirmed": False, "unconfirmed_because": "no_proxy", "proxies": []}, 5),
        ({"confirmed": False, "unconfirmed_because": "proxy_pending"}, 5),
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
    result = haltwire("kill", MAILER)
    assert result.exit_code == exit_code
    assert "In force as K0123456789AB" in result.stdout
    control.will("POST", KILL, receipt(**answer))
    result = haltwire("kill", MAILER, "--json")
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == receipt(**answer)


def test_an_order_that_cannot_be_stored_is_shown_and_fails(haltwire, control):
    answer = receipt(ok=False, durable=False) | {"error": {"code": "kill_not_durable"}}
    control.will("POST", KILL, answer, 503)
    result = haltwire("kill", MAILER)
    assert result.exit_code == 1
    assert result.stdout.startswith("NOT STORED")


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


@pytest.mark.parametrize(
    ("answer", "exit_code"),
    [
        ({"lifted": ["K1"]}, 0),
        ({"lifted": []}, 0),
        ({"lifted": [], "matched": {"agents": 0, "instances": 0, "proxies": 1}}, 3),
        ({"lifted": ["K1"], "still_killed_by": ["K2"]}, 6),
        ({"lifted": [], "still_killed_by": ["K2"]}, 6),
        ({"lifted": ["K1"], "confirmed": False, "unconfirmed_because": "proxy_pending"}, 5),
        ({"lifted": ["K1"], "confirmed": False, "unconfirmed_because": "no_proxy"}, 0),
    ],
)
def test_the_exit_code_of_a_resume(haltwire, control, answer, exit_code):
    control.will("POST", RESUME, receipt(mode="resume", **answer))
    assert haltwire("resume", MAILER).exit_code == exit_code


def test_a_kill_that_is_not_there(haltwire, control):
    control.will("POST", RESUME, {"error": {"message": "no such kill"}}, 404)
    assert haltwire("resume", "K0123456789AB").exit_code == 3


ORDER = {
    "kill_id": "K0123456789AB",
    "selector": MAILER,
    "mode": "cut",
    "reason": "bad\x1b[2J",
    "confirmed": False,
    "actor": "key:ada",
    "created_at": "2026-11-22T09:30:00.000000Z",
    "lifted_at": None,
}


def test_kills_lists_what_is_in_force(haltwire, control):
    control.will("GET", "/v1/mesh/kills", {"ok": True, "kills": [ORDER]})
    shown = haltwire("kills").stdout
    assert control.last[2] == {}
    for word in ("K0123456789AB", MAILER, "key:ada", "NOT YET", "bad\\x1b[2J"):
        assert word in shown


def test_kills_lists_lifted_ones_too(haltwire, control):
    rows = [ORDER, ORDER | {"lifted_at": "2026-11-22T09:31:00.000000Z"}]
    control.will("GET", "/v1/mesh/kills", {"ok": True, "kills": rows})
    shown = haltwire("kills", "--all").stdout.splitlines()
    assert control.last[2] == {"all": "1"}
    assert "LIFTED" in shown[0]
    assert len(shown) == 3


def test_list_shows_agents(haltwire, control):
    shown = haltwire("list").stdout.splitlines()
    assert shown[0].split()[:2] == ["AGENT", "STATUS"]
    assert [line.split()[0] for line in shown[1:]] == [
        MAILER,
        "agent://acme/dev/tester",
        "agent://other/dev/tester",
    ]


def test_list_takes_a_selector(haltwire, control):
    haltwire("list", "acme/*/mailer")
    assert control.last[2] == {"selector": "agent://acme/*/mailer", "limit": "10000"}


def test_list_of_nobody(haltwire, control):
    control.knows()
    assert haltwire("list").stdout == "No agent has been seen.\n"


def test_watch_of_a_server_that_was_never_there_ends(haltwire, control):
    control.will("GET", "/v1/mesh/agents", {"error": {"message": "no"}}, 401)
    assert haltwire("list", "--watch").exit_code == 4


def test_a_redraw_fits_the_screen_and_clears_what_was_there(monkeypatch):
    monkeypatch.setenv("LINES", "3")
    assert _redraw("a\nb\nc\nd", clear=True) == "\x1b[2J\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"
    assert _redraw("a", clear=False) == "\x1b[Ha\x1b[K\n\x1b[J"


def test_watch_goes_on_until_ctrl_c_and_through_a_restart(control, tmp_path):
    command = [sys.executable, "-m", "haltwire_cli", "list", "--watch", "--url", control.url]
    key = tmp_path / "key"
    key.write_text("hwk_" + "k" * 43)
    with subprocess.Popen(
        [*command, "--key-file", str(key)], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout.readline().startswith("AGENT")
        control.will("GET", "/v1/mesh/agents", {"error": {"message": "restarting"}}, 503)
        lines = iter(watch.stdout.readline, "")
        assert any("restarting" in line for line in lines)
        control.knows(MAILER)
        assert any(line.startswith("AGENT") for line in lines)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(5) == 0


def test_show_is_one_agent_with_its_orders_and_instances(haltwire, control):
    row = {
        "instance": "i-1",
        "status": "killed",
        "requests": 7,
        "metadata": {"batch": 2},
        "last_seen_at": "2026-11-22T09:30:00.000000Z",
    }
    detail = agent(MAILER, status="killed", instances_detail=[row], kills=[ORDER])
    document = {"ok": True, "agent": detail}
    control.will("GET", "/v1/mesh/agents/agent%3A%2F%2Facme%2Fprod%2Fmailer", document)
    shown = haltwire("show", "mailer").stdout
    assert shown.splitlines()[0] == f"{MAILER}: killed"
    assert "batch=2" in shown
    assert "K0123456789AB" in shown


def test_show_needs_one_agent(haltwire):
    result = haltwire("show", "acme/*")
    assert result.exit_code == 2
    assert "needs one agent" in result.stderr


def test_show_of_a_stranger_is_not_found(haltwire):
    assert haltwire("show", "acme/prod/stranger").exit_code == 3


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


def test_a_carve_out_is_not_called_nothing(haltwire, control):
    """It lifts no order, and yet the agent goes on."""
    control.will("POST", RESUME, receipt(mode="resume", lifted=[]))
    shown = haltwire("resume", MAILER, "--carve-out").stdout
    assert shown == f"Resumed {MAILER}: excepted from every order that goes on stopping others.\n"
    assert haltwire("resume", MAILER).stdout == f"Nothing was stopping {MAILER}.\n"
