"""The CA: made once, kept, private, trusted by real TLS clients, and never replaced in silence."""

import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from haltwire_proxy import authority
from haltwire_proxy.authority import AuthorityError, ensure_ca, upstream_roots
from mitmproxy.certs import CertStore


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def trusted_in(bundle):
    """How many authorities a TLS client trusts that is given this file."""
    return len(ssl.create_default_context(cafile=str(bundle)).get_ca_certs())


def store_of(data_dir):
    return CertStore.from_files(
        data_dir / "ca" / "haltwire-ca.pem", data_dir / "ca" / "haltwire-dhparam.pem"
    )


def test_what_is_made_and_who_may_read_it(data_dir):
    ca_file = ensure_ca(data_dir)
    assert ca_file == data_dir / "public" / "ca.pem"
    assert mode(data_dir / "ca") == 0o700
    assert mode(data_dir / "ca" / "haltwire-ca.pem") == 0o600
    assert mode(data_dir / "public") == 0o755
    assert mode(ca_file) == 0o644
    assert mode(data_dir / "public" / "ca-bundle.pem") == 0o644
    assert b"PRIVATE" not in ca_file.read_bytes()
    assert sorted(path.name for path in (data_dir / "ca").iterdir()) == [
        ".lock",
        "haltwire-ca.pem",
        "haltwire-dhparam.pem",
    ]


def test_the_certificate(data_dir):
    certificate = x509.load_pem_x509_certificate(ensure_ca(data_dir).read_bytes())
    left = certificate.not_valid_after_utc - datetime.now(timezone.utc)
    assert timedelta(days=3649) < left < timedelta(days=3651)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)


def test_it_is_kept_and_its_permissions_are_mended(data_dir):
    ca_file = ensure_ca(data_dir)
    before = (data_dir / "ca" / "haltwire-ca.pem").read_bytes()
    (data_dir / "ca" / "haltwire-ca.pem").chmod(0o644)
    (data_dir / "ca").chmod(0o755)
    ca_file.unlink()
    assert ensure_ca(data_dir) == ca_file
    assert (data_dir / "ca" / "haltwire-ca.pem").read_bytes() == before
    assert ca_file.read_bytes() in before
    assert mode(data_dir / "ca") == 0o700
    assert mode(data_dir / "ca" / "haltwire-ca.pem") == 0o600


def test_two_installations_have_two_authorities(tmp_path):
    one = x509.load_pem_x509_certificate(ensure_ca(tmp_path / "one").read_bytes())
    two = x509.load_pem_x509_certificate(ensure_ca(tmp_path / "two").read_bytes())
    assert one.subject != two.subject


def test_the_bundle_has_the_system_roots_and_ours(data_dir):
    ca_file = ensure_ca(data_dir)
    bundle = data_dir / "public" / "ca-bundle.pem"
    assert trusted_in(bundle) > 10
    assert bundle.read_bytes().endswith(b"\n" + ca_file.read_bytes())


def test_the_bundle_does_not_grow_when_it_is_the_systems(data_dir, monkeypatch):
    """`haltwire up` inside `haltwire run` finds SSL_CERT_FILE set to our own bundle."""
    ensure_ca(data_dir)
    bundle = data_dir / "public" / "ca-bundle.pem"
    before = bundle.read_bytes()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    ensure_ca(data_dir)
    assert bundle.read_bytes() == before


def test_without_system_roots_certifi_has_them(data_dir, monkeypatch):
    nowhere = ssl.DefaultVerifyPaths(None, None, "", "/nowhere", "", "/nowhere")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(authority, "_KNOWN_BUNDLES", ())
    ensure_ca(data_dir)
    assert trusted_in(data_dir / "public" / "ca-bundle.pem") > 10


def test_mitmproxy_signs_with_it_and_a_strict_client_agrees(data_dir):
    """Python 3.13 checks X509_STRICT by default: key usage, key identifiers, path length."""
    ca_file = ensure_ca(data_dir)
    entry = store_of(data_dir).get_cert("example.test", [x509.DNSName("example.test")])
    leaf = entry.cert.to_cryptography()
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    chain = data_dir / "leaf.pem"
    chain.write_bytes(
        entry.privatekey.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + entry.cert.to_pem()
    )
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(chain)
    client_side = ssl.create_default_context(cafile=str(ca_file))
    assert client_side.verify_flags & ssl.VERIFY_X509_STRICT
    left, right = socket.socketpair()
    with left, right:
        thread = threading.Thread(target=handshake, args=(server_side, left))
        thread.start()
        with client_side.wrap_socket(right, server_hostname="example.test") as secured:
            assert secured.recv(2) == b"ok"
        thread.join()


def handshake(context, sock):
    with context.wrap_socket(sock, server_side=True) as secured:
        secured.send(b"ok")


def a_pem(data_dir, *, ca=True, days=10, own_key=True):
    """A CA file with something about it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=20))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    signer = key if own_key else ec.generate_private_key(ec.SECP256R1())
    return signer.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


DAMAGED = {
    "empty": lambda pem, d: b"",
    "cut off": lambda pem, d: pem[: len(pem) // 2],
    "key alone": lambda pem, d: pem[: pem.index(b"-----BEGIN CERTIFICATE")],
    "certificate alone": lambda pem, d: pem[pem.index(b"-----BEGIN CERTIFICATE") :],
    "nonsense": lambda pem, d: b"\0" * 100,
    "another key": lambda pem, d: a_pem(d, own_key=False),
    "no authority": lambda pem, d: a_pem(d, ca=False),
    "ran out": lambda pem, d: a_pem(d, days=-1),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_ca_is_an_error_and_stays_as_it_is(name, data_dir):
    ensure_ca(data_dir)
    store = data_dir / "ca" / "haltwire-ca.pem"
    store.write_bytes(DAMAGED[name](store.read_bytes(), data_dir))
    before = store.read_bytes()
    with pytest.raises(AuthorityError, match="restore it from a backup"):
        ensure_ca(data_dir)
    assert store.read_bytes() == before


def test_a_data_dir_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityError, match="cannot set up"):
        ensure_ca(tmp_path / "file")


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError("disk is gone")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(AuthorityError, match="disk is gone"):
        ensure_ca(tmp_path)
    assert [path.name for path in (tmp_path / "ca").iterdir()] == [".lock"]


def test_processes_that_start_together_see_one_ca(data_dir):
    program = (
        "import sys, pathlib; from haltwire_proxy.authority import ensure_ca;"
        "print(ensure_ca(pathlib.Path(sys.argv[1])).read_text())"
    )
    command = [sys.executable, "-c", program, str(data_dir)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    certificates = {process.communicate(timeout=60)[0] for process in processes}
    assert len(certificates) == 1
    assert "BEGIN CERTIFICATE" in certificates.pop()


def test_who_comes_second_waits_and_takes_what_the_first_has_made(data_dir, tmp_path):
    ensure_ca(tmp_path / "first")
    (data_dir / "ca").mkdir(parents=True)
    made = []
    thread = threading.Thread(target=lambda: made.append(ensure_ca(data_dir)))
    with authority._locked(data_dir / "ca" / ".lock"):
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        first = (tmp_path / "first" / "ca" / "haltwire-ca.pem").read_bytes()
        (data_dir / "ca" / "haltwire-ca.pem").write_bytes(first)
    thread.join(timeout=20)
    assert made[0].read_bytes() in first


def test_upstreams_are_judged_by_the_systems_roots_and_the_operators(tmp_path):
    ensure_ca(tmp_path)
    extra = tmp_path / "corporate.pem"
    extra.write_bytes((tmp_path / "public" / "ca.pem").read_bytes())
    alone = upstream_roots(tmp_path, None).read_bytes()
    assert alone.count(b"BEGIN CERTIFICATE") > 10
    assert upstream_roots(tmp_path, extra).read_bytes() == alone + extra.read_bytes()


def test_an_upstream_file_without_a_certificate_is_named(tmp_path):
    ensure_ca(tmp_path)
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(AuthorityError, match=r"empty\.pem holds no certificate"):
        upstream_roots(tmp_path, empty)
    with pytest.raises(AuthorityError, match="cannot read"):
        upstream_roots(tmp_path, tmp_path / "missing.pem")
