"""What systemd hears: on a real datagram socket, by path and by abstract name."""

import configparser
import os
import socket
from pathlib import Path

import pytest
from haltwire_cli.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """The service manager's end, and what it would say in NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@haltwire-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind("\0" + name[1:] if name[0] == "@" else name)
        end.settimeout(5)
        yield end, name


def test_all_that_is_told(systemd):
    end, name = systemd
    notifier = Notifier.of({"NOTIFY_SOCKET": name}, os.getpid())
    notifier.ready("3 processes run")
    notifier.status("one line\nand another")
    notifier.alive()
    notifier.stopping("stopping", 8.5)
    assert [end.recv(1000).decode() for _ in range(4)] == [
        "READY=1\nSTATUS=3 processes run",
        "STATUS=one line and another",
        "WATCHDOG=1",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=8500000\nSTATUS=stopping",
    ]


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_when_the_watchdog_waits(environment, watchdog_s):
    notifier = Notifier.of({"NOTIFY_SOCKET": "/run/notify", **environment}, 77)
    assert notifier.watchdog_s == watchdog_s


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "relative"}],
)
def test_nobody_is_told_where_nobody_listens(environment):
    notifier = Notifier.of({**environment, "WATCHDOG_USEC": "1000"}, 1)
    assert notifier.watchdog_s is None
    notifier.ready("ready")


def test_a_socket_that_fails_or_is_full_stands_in_nobodys_way(tmp_path):
    Notifier(str(tmp_path / "gone")).alive()
    Notifier("/" + "x" * 500).alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "full"))
        notifier = Notifier(str(tmp_path / "full"))
        for _ in range(2000):
            notifier.alive()


def test_the_example_unit_is_for_what_we_tell():
    """With another KillMode the control server would get SIGTERM with the workers, and nobody could stop what drains."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(Path(__file__).parents[2] / "examples" / "haltwire.service")
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert service["KillMode"] == "mixed"
    assert service["WatchdogSec"]
    assert "haltwire up " in service["ExecStart"]
