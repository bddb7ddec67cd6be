"""The throw-away authority is one that a strict client accepts, and its key is nobody else's."""

from __future__ import annotations

import ssl
import stat

import pytest
from haltwire_cli.demo_authority import make_authority


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_strict_client_accepts_it(tmp_path, name):
    authority = make_authority(tmp_path)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(authority.certificate_file)
    client_side = ssl.create_default_context(cafile=authority.ca_file)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname=name)
    server = server_side.wrap_bio(up, down, server_side=True)
    unfinished = [client, server, client]
    while unfinished:
        try:
            unfinished[0].do_handshake()
        except ssl.SSLWantReadError:
            unfinished.append(unfinished[0])
        unfinished.pop(0)
    assert client.version() == "TLSv1.3"


def test_only_its_owner_reads_the_key(tmp_path):
    authority = make_authority(tmp_path)
    assert stat.S_IMODE(authority.certificate_file.stat().st_mode) == 0o600
    assert b"PRIVATE KEY" not in authority.ca_file.read_bytes()
