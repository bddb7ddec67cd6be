"""The audit log on the command line: in order, nothing lost between pages, and honest about its proof."""

import json
import signal
import subprocess
import sys

import pytest

EVENTS = "/v1/mesh/events"


def event(seq: int, **more: object) -> dict:
    return {
        "event_id": f"E{seq:012d}",
        "seq": seq,
        "event_type": "kill.issued",
        "agent_uri": "agent://acme/prod/mailer",
        "address": "agent://acme/prod/mailer~i-1",
        "actor": "key:ada",
        "actor_id": None,
        "reason": None,
        "details": {},
        "created_at": f"2026-11-22T09:{seq // 60:02d}:{seq % 60:02d}.000000Z",
        "hash": "0" * 64,
        **more,
    }


class Log:
    """Answers as the control server's log does."""

    def __init__(self, count: int) -> None:
        self.rows = [event(seq) for seq in range(1, count + 1)]
        self.most = 1000
        "How many rows one answer looks at."

    def __call__(self, query: dict, body: object) -> dict:
        kind = query.get("event_type")
        limit = int(query.get("limit", 100))
        if "after" not in query:
            found = [r for r in self.rows if kind in (None, r["event_type"])][-limit:]
            return {"ok": True, "events": found, "next_after": found[-1]["seq"] if found else 0}
        after = int(query["after"])
        seen = [r for r in self.rows if r["seq"] > after][: min(limit, self.most)]
        found = [r for r in seen if kind in (None, r["event_type"])]
        return {"ok": True, "events": found, "next_after": seen[-1]["seq"] if seen else after}


@pytest.fixture
def log(control) -> Log:
    log = Log(120)
    control.will("GET", EVENTS, log)
    return log


def seqs(text: str) -> list[int]:
    return [json.loads(line)["seq"] for line in text.splitlines()]


def test_the_latest_come_oldest_first(haltwire, log):
    lines = haltwire("events", "--limit", "2").stdout.splitlines()
    assert lines == [
        "2026-11-22 09:01:59Z  kill.issued        agent://acme/prod/mailer~i-1  by key:ada",
        "2026-11-22 09:02:00Z  kill.issued        agent://acme/prod/mailer~i-1  by key:ada",
    ]


def test_an_event_shows_its_reason_and_details_and_steers_nothing(haltwire, log):
    log.rows[-1] |= {
        "reason": "\x1b[2J",
        "details": {"kill_id": "K1", "x": "\x1b]", "revision": 3},
        "actor": "\x9b",
        "address": None,
        "agent_uri": None,
    }
    line = haltwire("events", "--limit", "1").stdout
    assert line.endswith("-  by \\x9b  because: \\x1b[2J  kill_id=K1 x=\\x1b]\n")


def test_filters_travel(haltwire, control, log):
    haltwire("events", "acme/prod/*", "--type", "kill.issued")
    assert control.last[2] == {
        "selector": "agent://acme/prod/*",
        "event_type": "kill.issued",
        "limit": "50",
    }


@pytest.mark.parametrize(
    ("since", "first"),
    [
        ("2026-11-22T09:00:00Z", 1),
        ("2026-11-22T09:00:30Z", 30),
        ("2026-11-22T09:00:30.5Z", 31),
        ("2026-11-22T09:02:00Z", 120),
        ("2026-11-22T09:02:01Z", None),
    ],
)
def test_since_finds_the_first_by_halving(haltwire, control, log, since, first):
    result = haltwire("events", "--since", since, "--json")
    assert seqs(result.stdout) == (list(range(first, 121)) if first else [])
    assert len(control.calls) < 15


def test_since_goes_through_pages_that_hold_nothing_that_fits(haltwire, log):
    log.most = 10
    log.rows[99]["event_type"] = "resume.issued"
    result = haltwire(
        "events", "--since", "2026-11-22T09:00:00Z", "--type", "resume.issued", "--json"
    )
    assert seqs(result.stdout) == [100]


@pytest.mark.parametrize("since", ["10m", "2h", "1.5s"])
def test_since_may_be_a_time_span(haltwire, log, since):
    assert haltwire("events", "--since", since).exit_code == 0


@pytest.mark.parametrize("since", ["yesterday", "2026-11-22T09:00:00", "-5m"])
def test_what_is_no_time_is_a_usage_error(haltwire, since):
    assert haltwire("events", "--since", since).exit_code == 2


def test_follow_prints_what_comes_until_ctrl_c(control, tmp_path, log):
    key = tmp_path / "key"
    key.write_text("hwk_" + "k" * 43)
    command = [sys.executable, "-m", "haltwire_cli", "events", "--follow", "--json", "--limit", "1"]
    command += ["--url", control.url, "--key-file", str(key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert seqs(process.stdout.readline()) == [120]
        log.rows.append(event(121))
        assert seqs(process.stdout.readline()) == [121]
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0


def test_an_intact_log_says_that_it_is_unanchored(haltwire, control):
    answer = {
        "ok": True,
        "events": 7,
        "head_hash": "ab" * 32,
        "first_bad_seq": None,
        "anchored": False,
    }
    control.will("GET", "/v1/mesh/audit/verify", answer)
    result = haltwire("audit", "verify")
    assert result.exit_code == 0
    assert "7 events, each one as it was written" in result.stdout
    assert "unanchored" in result.stdout
    assert "ab" * 32 in result.stdout
    assert json.loads(haltwire("audit", "verify", "--json").stdout) == answer


def test_a_forged_row_is_named(haltwire, control):
    answer = {"ok": False, "events": 4, "head_hash": "ab", "first_bad_seq": 5, "anchored": False}
    control.will("GET", "/v1/mesh/audit/verify", answer)
    result = haltwire("audit", "verify")
    assert result.exit_code == 1
    assert "event 5 is the first that does not fit" in result.stderr
    assert haltwire("audit", "verify", "--json").exit_code == 1


def test_export_is_what_is_stored_byte_for_byte(haltwire, control):
    rows = b'{"seq":1,"reason":"\xc3\xa9\\u001b"}\n{"seq":2}\n'
    control.will("GET", "/v1/mesh/audit/export", rows)
    assert haltwire("audit", "export").stdout_bytes == rows


def test_an_export_that_is_kept_elsewhere_anchors_the_log(haltwire, control, tmp_path):
    verified = {
        "ok": True,
        "events": 3,
        "head_hash": "ab" * 32,
        "first_bad_seq": None,
        "anchored": False,
    }
    rows = [event(seq, hash=f"{seq}" * 64) for seq in (1, 2, 3)]
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    control.will("GET", "/v1/mesh/audit/verify", verified)
    control.will(
        "GET", "/v1/mesh/audit/export", "".join(json.dumps(r) + "\n" for r in rows).encode()
    )
    result = haltwire("audit", "verify", "--against", str(kept))
    assert result.exit_code == 0
    assert "anchored up to event 2" in result.stdout
    assert "unanchored" not in result.stdout
    found = json.loads(haltwire("audit", "verify", "--against", str(kept), "--json").stdout)
    assert (found["ok"], found["anchored"], found["anchored_to"]) == (True, True, 2)

    rows[1]["hash"] = "f" * 64
    control.will(
        "GET", "/v1/mesh/audit/export", "".join(json.dumps(r) + "\n" for r in rows).encode()
    )
    result = haltwire("audit", "verify", "--against", str(kept))
    assert result.exit_code == 1
    assert "event 2 was changed since" in result.stderr
    assert "anchored" not in result.stdout
    result = haltwire("audit", "verify", "--against", str(kept), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["first_different_seq"]) == (1, False, 2)


def test_a_file_that_is_no_export_is_a_usage_error(haltwire, tmp_path):
    (tmp_path / "kept.jsonl").write_text("hello\n")
    result = haltwire("audit", "verify", "--against", str(tmp_path / "kept.jsonl"))
    assert result.exit_code == 2
    assert "line 1 is not the next event" in result.stderr
