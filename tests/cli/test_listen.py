"""Addresses to listen on, and who has one that is taken."""

import os
import socket
import subprocess
import sys

import pytest
from haltwire_cli.listen import (
    Address,
    address_of,
    bind,
    holder_of,
    is_exposed,
    is_loopback,
    url_of,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
        ("0.0.0.0:1", "0.0.0.0", 1),
    ],
)
def test_an_address_is_read_and_written_alike(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("8080", "not HOST:PORT"),
        (":8080", "not HOST:PORT"),
        ("::1:8080", "not HOST:PORT"),
        ("localhost:65536", "ports end at 65535"),
        ("localhost:http", "not HOST:PORT"),
        ("http://localhost:80", "not HOST:PORT"),
        ("localhost:-1", "not HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text, because):
    with pytest.raises(ValueError, match=because):
        Address.parse(text)


def test_port_zero_becomes_a_real_one():
    with bind(Address("127.0.0.1", 0), 10) as listener:
        bound = address_of(listener)
        assert bound.port > 0
        assert url_of(bound) == f"http://127.0.0.1:{bound.port}"
        with socket.create_connection((bound.host, bound.port)):
            pass


def test_a_wildcard_is_reached_through_loopback():
    assert url_of(Address("0.0.0.0", 80)) == "http://127.0.0.1:80"
    assert url_of(Address("::", 80)) == "http://[::1]:80"
    assert url_of(Address("0.0.0.0", 80), "https") == "https://127.0.0.1:80"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_loopback_is_loopback(host, loopback):
    assert is_loopback(Address(host, 1)) is loopback


def test_a_taken_port_is_named_with_the_program_that_has_it():
    with bind(Address("127.0.0.1", 0), 10) as listener:
        port = address_of(listener).port
        with pytest.raises(OSError, match=rf"127.0.0.1:{port} is taken by .*\(pid {os.getpid()}\)"):
            bind(Address("127.0.0.1", port), 10)


def test_an_interpreter_is_named_with_its_script_and_nothing_more(tmp_path):
    """The rest of a command line may hold a secret."""
    script = tmp_path / "server.py"
    script.write_text(
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    command = [sys.executable, str(script), "--password", "hunter2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        holder = holder_of(Address("127.0.0.1", int(server.stdout.readline())))
        server.stdin.close()
    assert holder.startswith("python")
    assert holder.endswith(f"server.py (pid {server.pid})")
    assert "hunter2" not in holder


def test_a_free_port_has_no_holder():
    with bind(Address("127.0.0.1", 0), 10) as listener:
        address = address_of(listener)
    assert holder_of(address) is None


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_the_same_port_of_another_address_is_in_nobodys_way(host):
    with bind(Address("127.0.0.1", 0), 10) as listener:
        assert holder_of(Address(host, address_of(listener).port)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_wildcard_is_in_everybodys_way(host):
    with bind(Address("0.0.0.0", 0), 10) as listener:
        assert holder_of(Address(host, address_of(listener).port))


def test_where_there_is_no_proc_nobody_is_named(tmp_path):
    assert holder_of(Address("127.0.0.1", 80), proc=tmp_path) is None


@pytest.mark.parametrize(
    ("address", "because"),
    [
        (Address("192.0.2.1", 0), "is no address of this machine"),
        (Address("no-such-host.invalid", 0), "has no address here"),
    ],
)
def test_an_address_that_cannot_be_used_is_named(address, because):
    with pytest.raises(OSError, match=because):
        bind(address, 10)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("http://control.example:8081", True),
        ("http://203.0.113.8", True),
        ("https://control.example:8081", False),
        ("http://127.0.0.1:8081", False),
        ("http://[::1]:8081", False),
        ("http://LOCALHOST:8081", False),
    ],
)
def test_what_goes_over_a_network_unencrypted_is_exposed(url, exposed):
    assert is_exposed(url) is exposed
