"""Which orders are in force and which agents there are, as a person reads it."""

import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from haltwire.wire.codec import format_time
from haltwire_cli.agents import _redraw
from support.receipts import agent, hold, incident, instance, kill, lifted, receipt

MAILER = "agent://acme/prod/mailer"
KILL_PATH = "/v1/mesh/kills/K0123456789AB"


@pytest.fixture(autouse=True)
def seen(control):
    control.knows(MAILER, "agent://acme/dev/tester", "agent://other/dev/tester")


ORDER = kill(reason="bad\x1b[2J", confirmed=False)


def test_kills_lists_what_is_in_force(haltwire, control):
    control.will("GET", "/v1/mesh/kills", {"ok": True, "kills": [ORDER]})
    shown = haltwire("kills").stdout
    assert control.last[2] == {}
    for word in ("K0123456789AB", MAILER, "key:ada", "NOT YET", "bad\\x1b[2J"):
        assert word in shown


def test_kills_lists_lifted_ones_too(haltwire, control):
    rows = [ORDER, lifted(expires_at="2026-11-22T09:50:00.000000Z")]
    control.will("GET", "/v1/mesh/kills", {"ok": True, "kills": rows})
    shown = haltwire("kills", "--all").stdout.splitlines()
    assert control.last[2] == {"all": "1"}
    assert "LIFTED" in shown[0]
    assert len(shown) == 3
    assert " now " not in shown[2], "what is lifted does not expire any more"


def test_kills_says_the_mode_and_what_becomes_of_an_order_by_itself(haltwire, control):
    def later(minutes: int) -> str:
        return format_time(datetime.now(timezone.utc) + timedelta(minutes=minutes, seconds=30))

    rows = [
        kill(mode="hold", hold_until=later(90), expires_at=later(15)),
        kill(mode="drain", grace_s=30.0),
    ]
    control.will("GET", "/v1/mesh/kills", {"ok": True, "kills": rows})
    header, held, draining = haltwire("kills").stdout.splitlines()
    assert header.split() == [
        "ID",
        "SELECTOR",
        "MODE",
        "PROVEN",
        "BY",
        "SINCE",
        "EXPIRES",
        "REASON",
    ]
    assert "hold, cut in 90 min" in held
    assert "in 15 min" in held
    assert " drain " in draining


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


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({}, "3"),
        ({"instances_killed": 1}, "3 (1 killed)"),
        ({"instances_killed": 1, "instances_held": 2}, "3 (1 killed, 2 held)"),
    ],
)
def test_list_says_how_many_instances_are_stopped(haltwire, control, more, shown):
    row = agent(MAILER, status="held", instances=3, **more)
    control.will("GET", "/v1/mesh/agents", {"ok": True, "agents": [row]})
    assert f"  held    {shown}  " in haltwire("list").stdout


def test_show_needs_one_agent(haltwire):
    result = haltwire("show", "acme/*")
    assert result.exit_code == 2
    assert "needs one agent" in result.stderr


def test_show_of_a_stranger_is_not_found(haltwire):
    assert haltwire("show", "acme/prod/stranger").exit_code == 3


def test_show_of_a_kill_is_its_receipt(haltwire, control):
    control.will("GET", KILL_PATH, incident())
    result = haltwire("show", "K0123456789AB")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:3] == [
        f"K0123456789AB: cut of {MAILER}, ordered by key:ada at 2026-11-22 09:30:00Z: broken link",
        "",
        f"Stopped {MAILER} in 14.2 ms: every proxy has confirmed it.",
    ]


def test_show_of_a_lifted_kill_says_who_goes_on_and_promises_nothing(haltwire, control):
    row = instance(state="running", metadata={"batch": 22})
    resumed = receipt(mode="resume", lifted=["K0123456789AB"], instances=[row])
    document = incident(kill=lifted(mode="hold"), receipt=hold(), resume=resumed)
    control.will("GET", KILL_PATH, document)
    shown = haltwire("show", "K0123456789AB").stdout
    assert "Lifted at 2026-11-22 09:45:00Z by key:bob: fixed" in shown
    assert "frozen, nothing moved" in shown
    assert "In force" not in shown
    assert "instance i-7f3a: running, resumed from checkpoint batch=22" in shown


def test_show_of_a_kill_whose_receipt_is_lost(haltwire, control):
    control.will("GET", KILL_PATH, incident(receipt=None))
    assert "No receipt of it is stored." in haltwire("show", "K0123456789AB").stdout


def test_show_of_a_kill_as_json_and_of_one_that_is_not_there(haltwire, control):
    assert haltwire("show", "K0123456789AB").exit_code == 3
    control.will("GET", KILL_PATH, incident())
    assert json.loads(haltwire("show", "K0123456789AB", "--json").stdout) == incident()
