"""The children's entry, as a process of its own: it answers for its event loop, and ends with its supervisor."""

import json
import socket
import subprocess
import sys

import pytest


@pytest.fixture
def control(tmp_path):
    """A control server as a supervisor starts it, ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-P", "-O", "-m", "haltwire_cli.serve", "control"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            bufsize=0,
        )
        told = {"data_dir": str(tmp_path), "listen_fd": listener.fileno(), "tls": None}
        process.stdin.write(json.dumps(told).encode() + b"\n")
        with process:
            assert json.loads(process.stdout.readline()) == {"ready": True}
            yield process
            process.kill()


def test_it_answers_what_it_is_asked(control):
    control.stdin.write(b"7\n")
    assert control.stdout.readline() == b"\n"
    assert json.loads(control.stdout.readline()) == {"alive": 7}


def test_it_ends_when_nobody_asks_any_more(control):
    control.stdin.close()
    assert control.wait(10) == 0
