"""report and note: the page of a kill, and what people add to it."""

import json
import subprocess
import sys

import pytest
from support.receipts import incident

KILL = "K0123456789AB"
KILL_PATH = f"/v1/mesh/kills/{KILL}"
NOTES = f"{KILL_PATH}/notes"


def test_a_report_is_a_markdown_page(haltwire, control):
    control.will("GET", KILL_PATH, incident())
    result = haltwire("report", KILL)
    assert result.exit_code == 0
    assert result.stdout.startswith("# haltwire: cut of `agent://acme/prod/mailer`\n")


def test_a_report_as_json_is_the_servers_document(haltwire, control):
    control.will("GET", KILL_PATH, incident())
    assert json.loads(haltwire("report", KILL, "--json").stdout) == incident()


@pytest.mark.parametrize("command", [("report",), ("note", "x")])
def test_a_kill_that_is_not_there(haltwire, command):
    name, *words = command
    result = haltwire(name, KILL, *words)
    assert result.exit_code == 3
    assert result.stderr == "Error: there is no such thing.\n"


@pytest.mark.parametrize("typed", ["mailer", "k0123456789ab", "K1", "../kills"])
def test_what_is_no_id_is_not_asked_for(haltwire, control, typed):
    for arguments in (("report", typed), ("note", typed, "x")):
        result = haltwire(*arguments)
        assert result.exit_code == 2
        assert "is no kill's id, such as K0123456789AB" in result.stderr
    assert control.calls == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("told", "legal"), "told legal"),
        (("told legal",), "told legal"),
        (("--", "--force was used"), "--force was used"),
        (("caf\udce9",), "caf�"),
        (("-", "a dash"), "- a dash"),
    ],
)
def test_words_become_a_note(haltwire, control, words, text):
    control.will("POST", NOTES, {"ok": True})
    result = haltwire("note", KILL, *words)
    assert result.exit_code == 0
    assert control.last == ("POST", NOTES, {}, {"text": text})
    assert result.stdout == f"Noted on {KILL}; `haltwire report {KILL}` shows it.\n"


def test_a_note_is_read_from_stdin(control, tmp_path):
    control.will("POST", NOTES, {"ok": True})
    key = tmp_path / "key"
    key.write_text("hwk_" + "k" * 43)
    command = [sys.executable, "-m", "haltwire_cli", "note", KILL, "-", "--json"]
    done = subprocess.run(
        [*command, "--url", control.url, "--key-file", str(key)],
        input=b"two\nlines \xff\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert control.last[3] == {"text": "two\nlines �"}
    assert json.loads(done.stdout) == {"ok": True}


@pytest.mark.parametrize("words", [(), ("",), (" ", " ")])
def test_an_empty_note_is_refused(haltwire, control, words):
    assert haltwire("note", KILL, *words).exit_code == 2
    assert control.calls == []
