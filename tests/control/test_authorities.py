"""The CAs of proxies: each once, only certificates, only of proxies that have not ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from haltwire_control.authorities import Authorities, is_certificate
from haltwire_control.datadir import DataDirectory
from support.control import Worker, running_control

OURS, THEIRS = (
    f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n"
    for name in ("b3Vycw==", "dGhlaXJz")
)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (OURS, True),
        (OURS.strip(), True),
        (OURS.replace("\n", "\r\n"), True),
        ("", False),
        (OURS + THEIRS, False),
        ("x" + OURS, False),
        (OURS.replace("CERTIFICATE", "PRIVATE KEY"), False),
        ("-----BEGIN CERTIFICATE-----\n<script>\n-----END CERTIFICATE-----\n", False),
    ],
)
def test_a_certificate_is_one_and_nothing_else(text, is_one):
    assert is_certificate(text) is is_one


@pytest.fixture
def directory(tmp_path):
    directory = DataDirectory(str(tmp_path))
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "ca.pem").write_text(OURS)
    (tmp_path / "public" / "ca-bundle.pem").write_text("ROOTS\n" + OURS)
    yield directory
    directory.release()


def peer(authority: str | None, gone: bool = False) -> SimpleNamespace:
    return SimpleNamespace(authority=authority, gone=gone)


@pytest.mark.parametrize(
    ("has_proxy", "peers", "every", "bundle"),
    [
        (True, [], OURS, "ROOTS\n" + OURS),
        (True, [peer(OURS), peer(OURS)], OURS, "ROOTS\n" + OURS),
        (True, [peer(THEIRS), peer(None)], OURS + THEIRS, "ROOTS\n" + OURS + THEIRS),
        (False, [peer(THEIRS), peer(THEIRS)], THEIRS, "ROOTS\n" + OURS + THEIRS),
        (False, [peer(THEIRS, gone=True)], None, None),
        (False, [], None, None),
    ],
)
def test_each_ca_is_served_once(directory, has_proxy, peers, every, bundle):
    authorities = Authorities(directory, has_proxy)
    served = authorities.all(peers), authorities.bundle(peers)
    assert tuple(one and one.decode() for one in served) == (every, bundle)


async def test_a_proxy_tells_its_own_over_the_link(control):
    await Worker(control, authority=THEIRS).join()
    (control.data_dir / "public").mkdir()
    (control.data_dir / "public" / "ca-bundle.pem").write_text("ROOTS\n")
    assert (await control.call("GET", "/ca.pem", key=None)).body.decode() == THEIRS
    bundle = await control.call("GET", "/ca-bundle.pem", key=None)
    assert bundle.body.decode() == "ROOTS\n" + THEIRS


async def test_what_is_no_certificate_is_not_served(control):
    await Worker(control, authority=THEIRS + "and more").join()
    assert (await control.call("GET", "/ca.pem", key=None)).status == 404


async def test_a_control_server_alone_does_not_offer_its_own(tmp_path):
    """Its CA signs nothing that an agent sees: who trusted it would fail all the same, and not know why."""
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "ca.pem").write_text(OURS)
    async with running_control(tmp_path, local_proxy_key="") as control:
        reply = await control.call("GET", "/ca.pem", key=None)
        assert reply.status == 404
        assert reply.body["error"]["message"] == "no proxy is connected, so there is no CA of one"
