"""What happens when the listeners' certificates change."""

import asyncio
import os
import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from haltwire_cli import listener_tls
from haltwire_cli.certificates import Pair, leaf_of, server_context
from haltwire_cli.listener_tls import Issued, Listening, Pins, Published, followed, keep
from support.certificates import shown, write_pair
from support.ends import soon


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf_of(pair.certificate))


def bump(pair: Pair) -> None:
    """Give the files a time of their own: two writes can fall into one tick of the file system's clock."""
    for path in (pair.certificate, pair.key):
        stamp = path.stat().st_mtime_ns + 1_000_000
        os.utime(path, ns=(stamp, stamp))


@pytest.fixture
def pair(tmp_path) -> Pair:
    return Pair(*write_pair(tmp_path))


def test_a_certificate_that_is_renewed_is_shown_from_the_second_look_on(pair, tmp_path):
    """The first look may find half of a pair, and those who pin it must know the new one before."""
    listening = Listening(pair)
    before = der(pair)
    write_pair(tmp_path)
    bump(pair)
    listening.look()
    assert shown(listening.context) == before
    listening.look()
    assert shown(listening.context) == der(pair) != before


@pytest.mark.parametrize("broken", ["other key", "gone"])
def test_one_that_cannot_be_used_leaves_the_one_before(pair, tmp_path, broken, caplog):
    """When `look` set the context before it had loaded the pair, the handshake failed here."""
    listening = Listening(pair)
    before = der(pair)
    if broken == "gone":
        pair.key.unlink()
    else:
        write_pair(tmp_path, other_key=True)
        bump(pair)
    for _ in range(4):
        listening.look()
    assert shown(listening.context) == before
    assert "the one before stays" in caplog.text
    write_pair(tmp_path)
    bump(pair)
    listening.look()
    listening.look()
    assert shown(listening.context) == der(pair) != before


def test_the_published_certificate_has_no_key_and_keeps_the_one_before(pair, tmp_path):
    both = Pair(tmp_path / "both.pem", tmp_path / "both.pem")
    both.certificate.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    published = Published(both, tmp_path / "control.pem")
    first = leaf_of(pair.certificate)
    assert published.file.read_text() == first
    assert published.file.stat().st_mode & 0o777 == 0o644
    write_pair(tmp_path)
    both.certificate.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    published.look()
    assert published.file.read_text() == leaf_of(pair.certificate) + first


async def test_pins_take_the_new_certificate_as_soon_as_it_is_published(
    pair, tmp_path, monkeypatch
):
    monkeypatch.setattr(listener_tls, "LOOK_S", 0.02)
    published = Published(pair, tmp_path / "control.pem")
    pins = Pins(published.file)
    shown(server_context(pair), pins.context)
    write_pair(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shown(server_context(pair), pins.context)
    async with followed(pins, Listening(pair), None):
        published.look()

        def taken() -> bool:
            try:
                return bool(shown(server_context(pair), pins.context))
            except ssl.SSLCertVerificationError:
                return False

        await soon(taken)


def test_our_own_is_made_anew_in_time_and_when_our_names_change(pair):
    made = []
    names = ["localhost"]

    def issue(for_names: tuple[str, ...], now: datetime) -> Path:
        made.append(for_names)
        return pair.certificate

    issued = Issued(issue, lambda: tuple(names), timedelta(days=10))
    issued.look()
    issued.look(datetime.now(timezone.utc) + timedelta(days=9))
    assert made == [("localhost",)]
    issued.look(datetime.now(timezone.utc) + timedelta(days=11))
    assert len(made) == 2
    issued.look(datetime.now(timezone.utc) - timedelta(days=1))  # the clock was wrong before
    assert len(made) == 3
    names.append("10.0.0.9")
    issued.look()
    issued.look()
    assert made[3:] == [("localhost", "10.0.0.9")]


async def test_what_goes_wrong_again_and_again_is_said_once(pair):
    said = []
    calls = 0

    def look() -> None:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise OSError("the disk is full")

    keeping = asyncio.get_running_loop().create_task(keep(look, 0.001, said.append))
    await soon(lambda: calls > 6)
    keeping.cancel()
    assert said == [
        "the TLS certificate could not be renewed, so the one before stays: the disk is full"
    ]
