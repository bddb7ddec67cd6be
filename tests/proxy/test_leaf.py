"""Our listeners' own certificate: for which names, for how long, and that it does what one of ours must."""

import ipaddress
import os
import ssl
import stat
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from haltwire_proxy.authority import AuthorityError, ensure_ca
from haltwire_proxy.leaf import BACKDATED, VALIDITY, issue_leaf

NOW = datetime(2030, 5, 1, 12, tzinfo=timezone.utc)


def leaf(path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(one.value) for one in found}


def test_it_is_short_lived_and_for_servers_alone(data_dir):
    certificate = leaf(issue_leaf(data_dir, ["localhost"], NOW))
    assert certificate.not_valid_before_utc == NOW - BACKDATED
    assert certificate.not_valid_after_utc == NOW + VALIDITY
    assert certificate.public_key().curve.name == ec.SECP256R1.name
    extensions = certificate.extensions
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_its_names_are_addresses_and_dns_names_each_once(data_dir):
    given = ["localhost", "LOCALHOST", "127.0.0.1", "::1", "fe80::1%eth0", "10.1.2.3", "control.example.com", "no_name", "-x", "ключ", ""]  # fmt: skip
    found = names(leaf(issue_leaf(data_dir, given, NOW)))
    assert found == {
        "localhost",
        "127.0.0.1",
        str(ipaddress.ip_address("::1")),
        "fe80::1",
        "10.1.2.3",
        "control.example.com",
    }


def test_only_we_can_read_its_key(data_dir):
    before = os.umask(0)
    try:
        path = issue_leaf(data_dir, ["localhost"], NOW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_it_is_another_one_each_time_and_our_authority_vouches_for_it(data_dir):
    now = datetime.now(timezone.utc)
    path = issue_leaf(data_dir, ["localhost"], now)
    first = leaf(path)
    second = leaf(issue_leaf(data_dir, ["localhost"], now))
    assert first.serial_number != second.serial_number
    assert first.public_key() != second.public_key()
    authority = x509.load_pem_x509_certificate((data_dir / "public" / "ca.pem").read_bytes())
    second.verify_directly_issued_by(authority)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)


def test_it_does_not_outlive_its_authority(data_dir):
    authority = x509.load_pem_x509_certificate((data_dir / "public" / "ca.pem").read_bytes())
    end = authority.not_valid_after_utc
    certificate = leaf(issue_leaf(data_dir, ["localhost"], end - timedelta(days=1)))
    assert certificate.not_valid_after_utc == end


def test_a_damaged_authority_makes_none_and_leaves_the_old_one(tmp_path):
    ensure_ca(tmp_path)
    before = issue_leaf(tmp_path, ["localhost"], NOW).read_bytes()
    store = tmp_path / "ca" / "haltwire-ca.pem"
    store.write_bytes(store.read_bytes()[:100])
    with pytest.raises(AuthorityError, match="restore it from a backup"):
        issue_leaf(tmp_path, ["localhost"], NOW)
    store.unlink()
    with pytest.raises(AuthorityError, match="cannot make the listeners' certificate"):
        issue_leaf(tmp_path, ["localhost"], NOW)
    assert (tmp_path / "ca" / "listener.pem").read_bytes() == before


def test_the_file_is_a_key_its_certificate_and_the_authority(data_dir):
    pem = issue_leaf(data_dir, ["localhost"], NOW).read_bytes()
    key = serialization.load_pem_private_key(pem, password=None)
    own, authority = x509.load_pem_x509_certificates(pem)
    assert key.public_key() == own.public_key()
    assert own.issuer == authority.subject
