"""The data directory: one `up` at a time, and endpoints.json that is believed only while one runs."""

import json
import os
import signal
import subprocess
import sys

import pytest
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home

HOLD = "import os, sys; from pathlib import Path; from haltwire_cli.home import Home\nwith Home(Path(sys.argv[1])).claimed() as fd:\n"


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "data")


def test_endpoints_are_known_while_claimed_and_published(home):
    assert home.endpoints() is None
    with home.claimed():
        assert home.endpoints() is None
        home.publish(Endpoints("http://p:1", "http://c:2", "/ca.pem"))
        assert home.endpoints() == Endpoints("http://p:1", "http://c:2", "/ca.pem")
        document = json.loads((home.path / "endpoints.json").read_text())
        assert document == {
            "proxy_url": "http://p:1",
            "control_url": "http://c:2",
            "ca_file": "/ca.pem",
        }
        pinned = Endpoints("http://p:1", "https://c:2", "/ca.pem", "/control.pem")
        home.publish(pinned)
        assert home.endpoints() == pinned
        half = Endpoints(None, "https://c:2", "/ca.pem")
        home.publish(half)
        assert home.endpoints() == half
        assert json.loads((home.path / "endpoints.json").read_text())["proxy_url"] is None
        home.unpublish()
        assert home.endpoints() is None
        assert sorted(p.name for p in home.path.iterdir()) == ["up.lock"]


def test_a_file_left_behind_is_not_believed(home):
    """Another program may listen there by now, and would be shown the admin key."""
    with home.claimed():
        home.publish(Endpoints("http://p:1", "http://c:2", "/ca.pem"))
    assert (home.path / "endpoints.json").exists()
    assert home.endpoints() is None


def test_a_directory_has_one_up_at_a_time(home):
    code = HOLD + "  print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(home.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(Failure) as caught, home.claimed():
            pass
        other.stdin.close()
    sentence = f"{home.path} is in use by another haltwire (pid {other.pid}): stop that one, or give this one another --data-dir."
    assert caught.value.format_message() == sentence
    with home.claimed():
        pass


def test_the_children_of_a_killed_up_are_waited_for(home):
    """Otherwise the next `up` would find their ports and their lock taken."""
    code = HOLD + (
        "  import subprocess, time\n"
        "  subprocess.Popen(['sleep', '0.5'], pass_fds=[fd], stdout=subprocess.DEVNULL)\n"
        "  print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        other.kill()
    with home.claimed():
        assert (home.path / "up.lock").read_text() == str(os.getpid())


def test_processes_that_a_killed_up_left_behind_are_named(home, monkeypatch):
    """A frozen worker does not notice that its supervisor is gone."""
    monkeypatch.setattr("haltwire_cli.home.PREDECESSOR_S", 0.2)
    code = HOLD + (
        "  import subprocess, time\n"
        "  child = subprocess.Popen(['sleep', '60'], pass_fds=[fd], stdout=subprocess.DEVNULL)\n"
        "  print(child.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        left = int(other.stdout.readline())
        other.kill()
    try:
        with pytest.raises(Failure, match=f"left behind \\(pid {left}\\)"), home.claimed():
            pass
    finally:
        os.kill(left, signal.SIGKILL)


def test_a_new_directory_is_for_its_owner_alone(home):
    with home.claimed():
        assert home.path.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(Failure, match="cannot be used: Not a directory"),
        Home(tmp_path / "file" / "x").claimed(),
    ):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"proxy_url": 1'])
def test_a_broken_file_is_no_endpoints(home, content):
    with home.claimed():
        (home.path / "endpoints.json").write_text(content)
        assert home.endpoints() is None
