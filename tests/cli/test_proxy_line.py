"""The line that starts a proxy elsewhere, by how the control server is reached."""

import socket
from pathlib import Path

import pytest
from haltwire_cli.api import Api
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.proxy_line import proxy_line

SECRET = "hwk_" + "p" * 43


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "data")


def api(url: str, home: Home, is_local: bool) -> Api:
    return Api(url, "k", home, is_local)


def test_a_server_with_our_own_certificate_is_called_by_this_machines_name(home):
    with home.claimed():
        home.publish(Endpoints(None, "https://127.0.0.1:8081", "/srv/public/ca.pem"))
        line = proxy_line(api("https://127.0.0.1:8081", home, True), "edge", None)
    url = f"https://{socket.gethostname()}:8081"
    assert line.command == (f"haltwire proxy --control {url} --key-file proxy.key --ca-file ca.pem")
    assert line.told(SECRET) == [
        "Take /srv/public/ca.pem to the proxy's machine as ca.pem.",
        "On the proxy's machine, type:",
        f"  (umask 077; echo {SECRET} > proxy.key)",
        f"  {line.command}",
    ]


def test_a_server_with_the_operators_certificate_needs_no_file(home):
    with home.claimed():
        home.publish(Endpoints(None, "https://127.0.0.1:1", "/ca.pem", "/control.pem"))
        line = proxy_line(api("https://127.0.0.1:1", home, True), "edge", None)
    assert "--ca-file" not in line.command
    assert line.ca_file is None


def test_one_on_loopback_says_that_others_cannot_call_it(home):
    line = proxy_line(api("http://127.0.0.1:8081", home, True), "edge", None)
    assert line.command == (
        "haltwire proxy --control http://127.0.0.1:8081 --key-file proxy.key --data-dir proxy-edge"
    )
    assert "--control-listen 0.0.0.0:8081" in line.told(SECRET)[-1]


@pytest.mark.parametrize(
    ("url", "ca_file", "words"),
    [
        ("https://c.example", None, "--control https://c.example --key-file proxy.key"),
        (
            "https://c.example:1",
            Path("/x.pem"),
            "--control https://c.example:1 --key-file proxy.key --ca-file ca.pem",
        ),
        (
            "https://[2001:db8::1]:1",
            None,
            "--control 'https://[2001:db8::1]:1' --key-file proxy.key",
        ),
        (
            "http://c.example:1",
            None,
            "--control http://c.example:1 --key-file proxy.key --insecure",
        ),
    ],
)
def test_one_elsewhere_is_called_as_it_was_called_here(home, url, ca_file, words):
    line = proxy_line(api(url, home, False), "edge", ca_file)
    assert line.command == f"haltwire proxy {words}"
    assert line.ca_file == ca_file
