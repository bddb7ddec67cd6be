"""Whom the command line takes for a control server; the key is shown to nobody else."""

import contextlib
import ssl
import threading
from datetime import datetime, timedelta, timezone

import pytest
from haltwire_cli import trust
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_proxy.authority import ensure_ca
from haltwire_proxy.leaf import issue_leaf
from support.certificates import Impostor, write_pair

KEY = "hwk_" + "k" * 43


def server(certificate, key=None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def shake(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "127.0.0.1") -> None:
    """A handshake in memory; what the client does not take is raised."""
    bios = [ssl.MemoryBIO() for _ in range(4)]
    near = client.wrap_bio(bios[0], bios[1], server_hostname=host)
    far = server.wrap_bio(bios[2], bios[3], server_side=True)
    for _ in range(4):
        for side in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        bios[2].write(bios[1].read())
        bios[0].write(bios[3].read())
    assert near.version()


@pytest.fixture
def ours(tmp_path):
    """(ca.pem, a server with a leaf of ours for 127.0.0.1)."""
    ca_file = ensure_ca(tmp_path / "ours")
    now = datetime.now(timezone.utc)
    return ca_file, server(issue_leaf(tmp_path / "ours", ["127.0.0.1", "localhost"], now))


def test_what_our_authority_has_signed_is_taken_for_its_names(ours):
    ca_file, context = ours
    shake(trust.of_our_authority(ca_file), context)
    shake(trust.of_our_authority(ca_file), context, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(trust.of_our_authority(ca_file), context, "control.example.com")


def test_another_installations_authority_is_not_ours(ours, tmp_path):
    other = ensure_ca(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(trust.of_our_authority(other), ours[1])


@pytest.mark.parametrize("days", [(-30, -1), (1, 30)])
def test_on_this_machine_a_wrong_clock_is_in_nobodys_way(tmp_path, days):
    """A stop at 3 a.m. must not fail for a certificate that ran out at midnight."""
    files = write_pair(tmp_path, days=days)
    shake(trust.of_this_certificate(files[0]), server(*files))
    ca_file = ensure_ca(tmp_path / "ours")
    at = datetime.now(timezone.utc) + timedelta(days=90 if days[0] > 0 else -90)
    shake(trust.of_our_authority(ca_file), server(issue_leaf(tmp_path / "ours", ["127.0.0.1"], at)))


def test_a_pinned_certificate_is_taken_by_any_name_and_no_other_is(tmp_path):
    pinned = write_pair(tmp_path, "control.example.com")
    (tmp_path / "x").mkdir()
    other = write_pair(tmp_path / "x", "control.example.com")
    shake(trust.of_this_certificate(pinned[0]), server(*pinned))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(trust.of_this_certificate(pinned[0]), server(*other))


def test_what_variables_name_is_not_trusted_on_this_machine(tmp_path, monkeypatch, ours):
    """An agent's environment names files of trusted CAs; an attacker's would name his own."""
    evil = write_pair(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(evil[0]))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    for context in (trust.of_our_authority(ours[0]), trust.of_this_certificate(ours[0])):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(context, server(*evil), "localhost")
    shake(trust.of_our_authority(ours[0]), ours[1])
    assert not (tmp_path / "keys").exists()


def test_a_ca_file_adds_to_the_systems_roots(ours, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(trust.of_the_world(None), ours[1])
    shake(trust.of_the_world(ours[0]), ours[1])
    with pytest.raises(Failure, match="holds no PEM certificates"):
        trust.of_the_world(write_pair(tmp_path)[1])


@pytest.mark.parametrize(
    ("name", "certificate", "words"),
    [
        ("nobody vouches", {}, "name its CA with --ca-file or HALTWIRE_CA_FILE"),
        ("run out", {"days": (-30, -1)}, "its certificate has run out"),
        ("not valid yet", {"days": (1, 30)}, "is not valid yet: set this machine's clock"),
        ("another name", {"name": "other.example"}, "is for other names: write a URL with one"),
    ],
)
def test_who_does_not_prove_who_he_is_never_sees_the_key(
    haltwire, tmp_path, name, certificate, words
):
    """One sentence, exit 1, and not a byte inside the TLS. With verify_mode CERT_NONE in `_client` all rows failed."""
    files = write_pair(tmp_path, **{"name": "localhost", **certificate})
    options = [] if name == "nobody vouches" else ["--ca-file", str(files[0])]
    impostor = Impostor(server(*files))
    try:
        result = haltwire("kills", "--url", f"https://localhost:{impostor.port}", *options)
    finally:
        impostor.close()
    assert result.exit_code == 1
    assert words in result.stderr
    assert "the key was not sent" in result.stderr
    assert result.stderr.count("\n") == 1
    assert impostor.heard == b""
    assert KEY not in result.output


def test_the_local_server_is_known_by_what_endpoints_json_names(haltwire, tmp_path):
    """Whoever has taken its port, with a certificate of another authority, gets no admin key."""
    home = Home(tmp_path / "data")
    ca_file = ensure_ca(home.path)
    impostor = Impostor(server(*write_pair(tmp_path, "localhost")))
    try:
        with home.claimed():
            url = f"https://localhost:{impostor.port}"
            home.admin_key.write_text(KEY)
            home.publish(Endpoints("http://127.0.0.1:1", url, str(ca_file)))
            env = {"HALTWIRE_DATA_DIR": str(home.path)}
            result = haltwire("kills", env=env)
            assert (result.exit_code, impostor.heard) == (1, b"")
            home.publish(Endpoints("http://127.0.0.1:1", url, str(ca_file), str(tmp_path / "no")))
            gone = haltwire("kills", env=env)
            assert gone.exit_code == 1
            assert "cannot be verified" in gone.stderr
    finally:
        impostor.close()


def test_a_server_without_tls_is_called_so_and_gets_no_key(haltwire):
    impostor = Impostor(None)
    try:
        result = haltwire("kills", "--url", f"https://127.0.0.1:{impostor.port}")
    finally:
        impostor.close()
    assert result.exit_code == 1
    assert "does not speak TLS: write http://" in result.stderr
    assert KEY.encode() not in impostor.heard


def test_a_server_with_tls_is_called_so_when_it_is_asked_without(haltwire, tmp_path):
    impostor = Impostor(server(*write_pair(tmp_path, "localhost")))
    try:
        assert trust.speaks_tls("127.0.0.1", impostor.port)
        result = haltwire("kills", "--url", f"http://127.0.0.1:{impostor.port}")
    finally:
        impostor.close()
    assert result.exit_code == 1
    assert "speaks TLS: write https:// instead of http://" in result.stderr


def test_a_closed_port_speaks_no_tls():
    impostor = Impostor(None)
    impostor.close()
    assert not trust.speaks_tls("127.0.0.1", impostor.port)
    assert threading.active_count() < 50


def test_a_given_authority_is_believed_alone_and_on_its_dates(tmp_path):
    """A proxy's control server has no other: the system's roots are many, and one of them is enough to lift a kill."""
    file = ensure_ca(tmp_path)
    context = trust.of_this_authority(file)
    assert len(context.get_ca_certs()) == 1
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.verify_flags & 0x200000
