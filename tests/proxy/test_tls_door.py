"""TLS to the proxy's own port: everything is as it is without, down to the end of one direction."""

import asyncio
import hashlib
import os
import ssl
from datetime import datetime, timezone

import pytest
import uvloop
from haltwire_proxy import tls_door
from haltwire_proxy.leaf import issue_leaf
from haltwire_proxy.tls_door import TlsTransport
from support.client import Wire, serving
from support.ends import soon
from support.tls import TlsWire, trusting
from support.world import INTERCEPTED, SECRET, World, basic

CREDENTIALS = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"


@pytest.fixture(scope="session")
def server_tls(data_dir):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issue_leaf(data_dir, ["127.0.0.1"], datetime.now(timezone.utc)))
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.fixture
async def world(data_dir, authority, server_tls):
    async with World(data_dir, authority.ca_file, "http://127.0.0.1:1", server_tls) as running:
        yield running


async def opened(world: World, **options) -> TlsWire:
    return await TlsWire.open_tls(world.port, trusting(world.ca_file), **options)


async def tunnelled(world: World, target: str) -> TlsWire:
    wire = await opened(world)
    answer = await wire.request("CONNECT", target, f"Host: {target}", CREDENTIALS)
    assert answer.status == 200
    return wire


async def ends(reader, writer):
    """Sends back what it reads, and at its end an end of its own."""
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.write(b"<end>")
    writer.close()


@pytest.mark.parametrize(
    ("name", "raw", "status", "code"),
    [
        ("TLS within TLS", b"\x16\x03\x01\x02\x00\x01", 400, "malformed_request"),
        ("HTTP/2 unasked", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request"),
        (
            "a secret that nobody has",
            b"GET http://a/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: "
            + basic("acme.prod.mailer", "hwa_" + "x" * 43).encode()
            + b"\r\nContent-Length: 1\r\n\r\n",
            407,
            "proxy_credentials_invalid",
        ),
        (
            "endless head",
            b"GET http://a/ HTTP/1.1\r\nX: " + b"a" * 70_000,
            431,
            "headers_too_large",
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_with_an_orderly_end(world, name, raw, status, code):
    wire = await opened(world)
    await wire.send(raw)
    answer = await wire.answer()
    assert (answer.status, answer.json()["error"]) == (status, code)
    assert await wire.reader.read() == b""
    assert wire.notified


async def test_a_challenge_is_answered_on_the_same_connection(world, origin):
    wire = await opened(world)
    target = f"{origin.url}/echo"
    assert (await wire.request("GET", target, f"Host: {origin.host}")).status == 407
    answer = await wire.request("GET", target, f"Host: {origin.host}", CREDENTIALS)
    assert answer.status == 200
    assert not [name for _, _, headers in origin.requests for name in headers if "proxy" in name]


async def test_the_port_goes_on_taking_requests_without_tls(world, origin):
    wire = await Wire.open(world.port)
    target = f"{origin.url}/echo"
    answer = await wire.request("GET", target, f"Host: {origin.host}", CREDENTIALS)
    assert answer.status == 200


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_tunnel_carries_every_byte_and_each_end_alone(data_dir, authority, server_tls, loop):
    """The client ends its direction and still hears the other; counts are of what is inside the TLS."""
    sent = os.urandom(5 * 1024 * 1024)

    async def scene() -> None:
        control = "http://127.0.0.1:1"
        async with World(data_dir, authority.ca_file, control, server_tls) as world:
            server, port = await serving(ends)
            wire = await tunnelled(world, f"127.0.0.1:{port}")

            async def feed() -> None:
                for start in range(0, len(sent), 100_000):
                    await wire.send(sent[start : start + 100_000])
                wire.writer.write_eof()

            _, received = await asyncio.gather(feed(), asyncio.wait_for(wire.reader.read(), 20))
            assert wire.notified
            assert hashlib.sha256(received).digest() == hashlib.sha256(sent + b"<end>").digest()
            await soon(lambda: wire.finished)
            wire.close()
            await soon(lambda: not world.enforcer.connections.everything())
            (usage,) = world.enforcer.tallies.all()
            assert (usage.bytes_up, usage.bytes_down) == (len(sent), len(received))
            server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scene())


async def test_a_fin_without_close_notify_ends_the_direction_too(world):
    """Many clients end so; without TLS nobody could tell either. What came before is passed on."""
    server, port = await serving(ends)
    wire = await tunnelled(world, f"127.0.0.1:{port}")
    await wire.send(b"last words")
    wire.writer.fin()
    assert await asyncio.wait_for(wire.reader.read(), 5) == b"last words<end>"
    server.close()


async def test_nothing_behind_close_notify_is_read(world):
    """Also not what somebody on the way has put there."""
    got = bytearray()

    async def keep(reader, writer):
        while chunk := await reader.read(65536):
            got.extend(chunk)
        writer.write(b"<end>")
        writer.close()

    server, port = await serving(keep)
    wire = await tunnelled(world, f"127.0.0.1:{port}")
    await wire.send(b"before")
    wire.writer.write_eof()
    wire.writer._raw.write(b"\x17\x03\x03\x00\x10" + b"forged" * 3)
    assert await asyncio.wait_for(wire.reader.read(), 5) == b"<end>"
    assert got == b"before"
    server.close()


async def test_a_kill_resets_the_socket_under_the_tls(world):
    """Nothing of TLS is said any more: an alert would wait behind what is queued."""
    server, port = await serving(ends)
    wire = await tunnelled(world, f"127.0.0.1:{port}")
    await wire.send(b"x")
    assert await wire.reader.readexactly(1) == b"x"
    world.kill("agent://acme/prod/mailer")
    await soon(lambda: wire.finished)
    assert wire.reset
    assert not wire.notified
    server.close()


async def test_a_held_stream_goes_on_where_it_stood(world):
    """More than the kernel holds is sent while it stands still; every byte comes, in order, after it."""
    server, port = await serving(ends)
    wire = await tunnelled(world, f"127.0.0.1:{port}")
    sent = os.urandom(3 * 1024 * 1024)
    first = sent[:1000]
    await wire.send(first)
    assert await wire.reader.readexactly(1000) == first
    held = world.hold("agent://acme/prod/mailer")
    loop = asyncio.get_running_loop()
    feeding = loop.create_task(wire.send(sent[1000:]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.reader.read(1), 0.3)
    world.resume(held.ack.kills[0])
    rest = await asyncio.wait_for(wire.reader.readexactly(len(sent) - 1000), 20)
    await feeding
    assert first + rest == sent
    wire.close()
    server.close()


async def test_a_client_that_does_not_read_makes_us_buffer_little(world):
    async def pour(_reader, writer):
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    server, port = await serving(pour)
    wire = await tunnelled(world, f"127.0.0.1:{port}")
    wire.pump.cancel()
    (connection,) = world.enforcer.connections.everything()
    seen = -1
    while seen != connection.bytes_down:
        seen = connection.bytes_down
        await asyncio.sleep(0.3)
    assert 0 < connection.client.unwritten() < 512 * 1024
    wire.close()
    server.close()


async def test_an_inspected_agent_is_read_inside_tls_within_tls(world, tls_origin):
    """A client whose TLS to the origin lies within its TLS to the proxy."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.port, ssl=trusting(world.ca_file), server_hostname="127.0.0.1"
    )
    wire = Wire(reader, writer)
    credentials = f"Proxy-Authorization: {basic('acme.prod.reader', INTERCEPTED)}"
    target = tls_origin.host
    assert (await wire.request("CONNECT", target, f"Host: {target}", credentials)).status == 200
    await wire.start_tls(trusting(world.ca_file), "127.0.0.1")
    assert (await wire.request("GET", "/echo", f"Host: {target}")).status == 200
    assert [(method, path) for method, path, _ in tls_origin.requests] == [("GET", "/echo")]
    (connection,) = world.enforcer.connections.everything()
    assert connection.kind == "inspected"


async def test_the_hello_may_come_byte_by_byte(world):
    wire = await opened(world, piece=1)
    assert (await wire.request("GET", "http://a/", "Host: a")).status == 407


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("h2", "http/1.1"), "http/1.1"), (("h2",), None), ((), None)],
)
async def test_nothing_but_http_1_1_is_agreed_on(world, offered, chosen):
    wire = await TlsWire.open_tls(world.port, trusting(world.ca_file, *offered))
    assert wire.tls.selected_alpn_protocol() == chosen


async def test_a_handshake_that_does_not_end_is_ended(world, monkeypatch):
    monkeypatch.setattr(tls_door, "HANDSHAKE_S", 0.05)
    wire = await Wire.open(world.port)
    await wire.send(b"\x16\x03\x01\x02\x00\x01")
    assert await wire.ended() == b""
    await soon(lambda: not world.services.doors)


@pytest.mark.parametrize(
    ("hello", "alert"),
    [
        (b"\x16nonsense", b""),  # no record at all: OpenSSL has nothing to say
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x15\x03"),
        (b"\x16\x03\x01\xff\xff", b"\x15\x03"),
    ],
)
async def test_a_handshake_that_fails_ends_with_an_alert_and_no_word_in_the_log(
    world, hello, alert, caplog
):
    wire = await Wire.open(world.port)
    await wire.send(hello)
    assert (await wire.ended())[:2] == alert
    await soon(lambda: not world.services.doors)
    assert caplog.records == []


async def test_an_older_tls_is_refused(world):
    context = trusting(world.ca_file)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await TlsWire.open_tls(world.port, context)


async def test_answers_that_the_protocol_itself_demands_are_bounded(world, monkeypatch):
    """As key updates do, of which a client can send millions and read no answer."""
    monkeypatch.setattr(tls_door, "MAX_ANSWERS", 1000)  # less than our certificate
    with pytest.raises(ConnectionError):
        await opened(world)


class _Raw(asyncio.Transport):
    """A socket's transport that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__({"socket": None})
        self.sent, self.reading, self.ended = bytearray(), True, None

    def set_protocol(self, protocol): ...

    def write(self, data):
        self.sent += data

    def write_eof(self):
        self.ended = "eof"

    def close(self):
        self.ended = "closed"

    def abort(self):
        self.ended = "aborted"

    def is_closing(self):
        return self.ended in ("closed", "aborted")

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class _Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.data, self.eof, self.lost = bytearray(), 0, False
        self.transport = None
        self.keeps_open = True

    def data_received(self, data):
        self.data += data
        if data == b"fail":
            raise RuntimeError("on purpose")

    def eof_received(self):
        self.eof += 1
        return self.keeps_open

    def connection_lost(self, exc):
        self.lost = True


class _Pair:
    """Our end over a fake socket, and a client's TLS beside it."""

    def __init__(self, server_tls, ca_file) -> None:
        self.raw, self.heard = _Raw(), _Heard()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = trusting(ca_file).wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.transport = TlsTransport(self.raw, self.heard, server_tls, self._out.read())

    def shake(self) -> None:
        self.take()
        self.tls.do_handshake()
        self.give()
        self.take()

    def take(self) -> None:
        self._in.write(bytes(self.raw.sent))
        self.raw.sent.clear()

    def give(self, *texts: bytes, end: bool = False) -> None:
        for text in texts:
            self.tls.write(text)
        if end:
            with pytest.raises(ssl.SSLWantReadError):
                self.tls.unwrap()
        data = self._out.read()
        if data:
            self.transport.data_received(data)


@pytest.fixture
async def pair(server_tls, data_dir):
    made = _Pair(server_tls, data_dir / "public" / "ca.pem")
    yield made
    made.transport.connection_lost(None)


async def test_what_was_written_too_early_follows_the_handshake(pair):
    pair.transport.write(b"early")
    pair.shake()
    assert pair.tls.read(100) == b"early"


async def test_what_was_read_waits_for_who_paused_and_comes_after_his_call(pair):
    """Who resumes may have earlier bytes of his own to give first."""
    pair.shake()
    pair.transport.pause_reading()
    pair.give(b"one ", b"two", end=True)
    assert (pair.heard.data, pair.heard.eof, pair.raw.reading) == (b"", 0, False)
    pair.transport.resume_reading()
    assert (pair.heard.data, pair.heard.eof) == (b"", 0)
    await asyncio.sleep(0)
    assert (pair.heard.data, pair.heard.eof, pair.raw.reading) == (b"one two", 1, True)


async def test_who_pauses_again_at_once_gets_nothing(pair):
    pair.shake()
    pair.transport.pause_reading()
    pair.give(b"one")
    pair.transport.resume_reading()
    pair.transport.pause_reading()
    await asyncio.sleep(0)
    assert (pair.heard.data, pair.raw.reading) == (b"", False)


async def test_our_end_is_told_once_and_reading_goes_on(pair):
    pair.shake()
    pair.transport.write(b"bye")
    pair.transport.write_eof()
    pair.transport.write(b"nothing more")
    pair.take()
    assert pair.tls.read(100) == b"bye"
    assert pair.tls.read(100) == b""
    assert pair.raw.ended == "eof"
    pair.give(b"still here")
    assert pair.heard.data == b"still here"
    pair.transport.close()
    assert (pair.raw.sent, pair.raw.ended) == (b"", "closed")


async def test_a_protocol_that_wants_no_half_ends_it_all(pair):
    pair.shake()
    pair.heard.keeps_open = False
    pair.give(end=True)
    assert pair.raw.ended == "closed"


async def test_a_record_that_was_tampered_with_ends_everything_at_once(pair):
    pair.shake()
    pair.transport.data_received(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    assert (pair.raw.ended, pair.heard.data) == ("aborted", b"")


async def test_what_cannot_be_given_on_after_a_pause_ends_the_connection(pair, caplog):
    pair.shake()
    pair.transport.pause_reading()
    pair.give(b"fail")
    pair.transport.resume_reading()
    await asyncio.sleep(0)
    assert pair.raw.ended == "aborted"
    assert "could not be given on" in caplog.text


async def test_after_its_end_nobody_is_told_twice(pair):
    pair.shake()
    pair.transport.connection_lost(None)
    assert pair.heard.lost
    pair.transport.connection_lost(None)
    assert pair.transport.get_protocol() is not pair.heard
