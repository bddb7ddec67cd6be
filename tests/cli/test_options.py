"""Kinds of values: what is read, and the sentence about what is not."""

import click
import pytest
from haltwire_cli.options import (
    cidr,
    default_data_dir,
    duration,
    listen_address,
    plain_text,
    proxy_url,
    server_url,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2),
        ("1.5s", 1.5),
        ("3", 3),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86_400),
        ("0", 0),
    ],
)
def test_a_time_span_is_seconds(text, seconds):
    assert duration()(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1w", "1e3", "٣s", "nan"])
def test_what_is_no_time_span_is_refused(text):
    with pytest.raises(click.BadParameter, match="is no time span"):
        duration()(text)


def test_a_time_span_has_bounds():
    with pytest.raises(click.BadParameter, match=r"not between 0\.2s and 60s"):
        duration(0.2, 60)("100ms")
    with pytest.raises(click.BadParameter, match="not between 90s and 30d"):
        duration(90, 30 * 86_400)("31d")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("FD00:1::/32", "fd00:1::/32"),
    ],
)
def test_a_range_is_canonical(text, canonical):
    assert cidr(text) == canonical


@pytest.mark.parametrize("text", ["10.0.0.1/8", "example.com", "10.0.0.0/33", ""])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(click.BadParameter, match="is no range of addresses"):
        cidr(text)


def test_what_is_no_address_is_refused():
    with pytest.raises(click.BadParameter, match="not HOST:PORT"):
        listen_address("8080")


def test_the_default_directory_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "haltwire"


def test_bytes_that_are_no_characters_are_marked():
    assert plain_text("caf\udce9 grüße") == "caf\ufffd grüße"


@pytest.mark.parametrize(
    "text", ["https://c.example:8081", "http://127.0.0.1:1", "https://c.example/below"]
)
def test_a_servers_url_is_read(text):
    assert server_url(text) == server_url(text + "/") == text


@pytest.mark.parametrize(
    "text", ["c.example", "ftp://c", "https://", "https://c:x", "https://[::1"]
)
def test_what_is_no_servers_url_is_refused(text):
    with pytest.raises(click.BadParameter):
        server_url(text)


@pytest.mark.parametrize("text", ["http://p.example:8080", "https://[2001:db8::1]:1"])
def test_a_proxys_url_is_read(text):
    assert proxy_url(text) == proxy_url(text + "/") == text


@pytest.mark.parametrize(
    "text",
    [
        "p:8080",
        "http://p",
        "http://p:0",
        "http://p:99999",
        "http://p:1/x",
        "http://a:b@p:1",
        "http://p:1?x",
    ],
)
def test_what_is_no_proxys_url_is_refused(text):
    with pytest.raises(click.BadParameter):
        proxy_url(text)
