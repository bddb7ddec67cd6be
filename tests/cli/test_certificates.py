"""The listeners' certificates: what is refused at the start, and the names that ours has."""

import ssl
from datetime import datetime, timezone
from pathlib import Path

import pytest
from haltwire_cli import certificates
from haltwire_cli.certificates import (
    Pair,
    addresses_of_this_host,
    check,
    leaf_of,
    names_of,
    server_context,
    serves_tls,
)
from haltwire_cli.listen import Address
from support.certificates import new_key, shown, write_pair

NOW = datetime.now(timezone.utc)


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf_of(pair.certificate))


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(*write_pair(tmp_path))


def test_a_good_pair_is_taken_and_so_is_one_file_with_both(pair, tmp_path):
    check(pair, NOW)
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    check(Pair(both, both), NOW)
    assert shown(server_context(Pair(both, both))) == der(pair)


@pytest.mark.parametrize(
    ("name", "certificate", "words"),
    [
        ("another key", {"other_key": True}, "is not the key of the certificate in"),
        ("run out", {"days": (-30, -1)}, "ran out on"),
        ("not valid yet", {"days": (1, 30)}, "is not valid before"),
        ("encrypted key", {"password": b"secret"}, "is encrypted"),
        ("weak key", {"key": new_key(1024)}, "is too short to be safe"),
    ],
)
def test_what_servers_could_not_use_is_refused_in_one_sentence(tmp_path, name, certificate, words):
    with pytest.raises(ValueError, match=words) as refused:
        check(Pair(*write_pair(tmp_path, **certificate)), NOW)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("broken", ["certificate", "key"])
def test_files_that_hold_something_else_are_named(pair, broken):
    path = getattr(pair, broken)
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match=str(path)):
        check(pair, NOW)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} cannot be read: No such file"):
        check(pair, NOW)


def test_nothing_older_than_tls_1_2_and_no_renegotiation(pair):
    context = server_context(pair)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("host", "own", "insecure", "tls"),
    [
        ("127.0.0.1", False, False, False),
        ("127.0.0.1", False, True, False),
        ("127.0.0.1", True, False, True),
        ("0.0.0.0", False, False, True),
        ("::", False, False, True),
        ("10.0.0.5", False, False, True),
        ("10.0.0.5", False, True, False),
        ("0.0.0.0", True, False, True),
    ],
)
def test_when_the_control_server_speaks_tls(host, own, insecure, tls):
    pair = Pair(Path("c"), Path("k")) if own else None
    assert serves_tls(Address(host, 1), pair, insecure) is tls


def test_a_listener_is_called_by_its_name_its_address_and_this_machines_own():
    asked = Address("control.example.com", 0), Address("10.0.0.5", 1)
    assert names_of([asked], "box") == (
        "localhost",
        "127.0.0.1",
        "::1",
        "box",
        "control.example.com",
        "10.0.0.5",
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_one_that_listens_everywhere_has_every_address(monkeypatch, host):
    monkeypatch.setattr(certificates, "addresses_of_this_host", lambda: ["10.0.0.5", "fd00::5"])
    names = names_of([(Address(host, 0), Address(host, 1))], "box")
    assert names[-2:] == ("10.0.0.5", "fd00::5")
    assert host not in names


def test_the_addresses_are_the_kernels(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n"
        "Local:\n     |-- 10.0.0.5\n        /32 host LOCAL\n     |-- 10.0.0.255\n"
        "        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n"
    )
    (tmp_path / "net" / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fd000000000000000000000000000005 02 40 00 80     eth0\n"
        "fe800000000000000000000000000005 02 40 20 80     eth0\n"
    )
    assert addresses_of_this_host(tmp_path) == ["10.0.0.5", "fd00::5"]
    assert addresses_of_this_host(tmp_path / "none") == []
