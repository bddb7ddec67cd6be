"""One authority per tunnel, against a real `haltwire up`: what a client names in TLS is what its CONNECT named.

Rows are named after the list of threats: S09 another name, S10 no name, B18 a CONNECT within, B19 an
encrypted ClientHello. Nothing of a refused greeting reaches the origin, and the audit log tells of names.

Protections that were taken out to see these tests fail, and what was seen:
- `Greeting.take` passing everything: all of S09 and B18 reached the origin, nothing was audited.
- `Greeting.answer` always done: the origin was asked for both names, ["localhost", "evilhosts"].
- the check of `record_kind` for warnings and changes of ciphers: they were passed on, with the hello
  behind them, and past the reading of TLS too.
- the duplicate check in `server_name`: "the extension twice" reached the origin.
- the rules for a record in `_walk`: the empty record and the version that Go takes were let in.
- the timer in tunnel.py nine times as long: the half hellos stayed for as long as the test waited.
- `MAX_HELD_BYTES` without bounds: "a hello without end" was kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from support.client import Wire, serving
from support.hello import client_context, extension, message, names, real_hello, records
from support.system import System
from support.world import basic

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNRECOGNIZED_NAME, DECODE_ERROR = bytes.fromhex("15030100020270"), bytes.fromhex("15030100020232")


class Agent:
    """An agent that opens tunnels."""

    def __init__(self, system: System, name: str, secret: str) -> None:
        self._port, self.name = system.port, name
        self._header = f"Proxy-Authorization: {basic(f'acme.prod.{name}', secret)}"

    @classmethod
    async def of(cls, system: System, name: str, tls: str = "tunnel") -> Agent:
        secret = urlsplit(await system.token(f"agent://acme/prod/{name}", tls)).password
        return cls(system, name, secret)

    async def tunnel(self, target: str) -> Wire:
        wire = await Wire.open(self._port)
        answer = await wire.request("CONNECT", target, self._header)
        assert answer.status == 200
        return wire


class Ear:
    """An origin that notes every byte, and may speak first."""

    def __init__(self, first: bytes = b"") -> None:
        self._first = first
        self.received, self.connections, self.ended = bytearray(), 0, asyncio.Event()

    async def __aenter__(self) -> Ear:
        self._server, self.port = await serving(self._serve)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._server.abort_clients()

    async def _serve(self, reader, writer) -> None:
        self.connections += 1
        writer.write(self._first)
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                self.received += chunk
        self.ended.set()
        writer.close()

    async def has(self, data: bytes) -> None:
        async with asyncio.timeout(5):
            while self.received != data:
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory, authority):
    folder = tmp_path_factory.mktemp("up")
    options = ("--workers", "1", "--upstream-ca", str(authority.ca_file))
    async with System(folder, *options) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(system):
    return await Agent.of(system, "mailer")


@pytest_asyncio.fixture(loop_scope="module")
async def ear():
    async with Ear() as running:
        yield running


def drip(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


ECH = extension(0xFE0D, b"\0\0\1\0\1\x2a\0\x20" + b"k" * 32 + b"\0\x10" + b"c" * 16)
RIGHT = message(names(b"localhost"))
PASSED = {
    "the same name": ("localhost", [real_hello("localhost")]),
    "the same name, byte by byte": ("localhost", drip(real_hello("localhost"))),
    "the same name in capitals": ("localhost", [records(message(names(b"LocalHost")))]),
    "the same name with a final dot": ("localhost", [records(message(names(b"localhost.")))]),
    "CONNECT in capitals, with a final dot": ("LOCALHOST.", [real_hello("localhost")]),
    "many records": ("localhost", [records(RIGHT, *[1] * 80)]),
    "S10 no name": ("localhost", [real_hello(None)]),
    "S10 no name, an address": ("127.0.0.1", [real_hello(None)]),
    "an address as the name": ("127.0.0.1", [records(message(names(b"127.0.0.1")))]),
    "B19 what looks like an encrypted ClientHello, as Chrome always sends": (
        "localhost",
        [records(message(names(b"localhost"), ECH))],
    ),
    "HTTP": ("localhost", [b"GET / HTTP/1.1\r\n\r\n"]),
    "SSH": ("localhost", [b"SSH-2.0-x\r\n"]),
    "PostgreSQL": ("localhost", [b"\0\0\0\x08\x04\xd2\x16\x2f"]),
    "MongoDB with a length like TLS": ("localhost", [b"\x16\1\0\0\1\0\0\0\0\0\0\0\xdd\7\0\0"]),
}


@pytest.mark.parametrize("name", PASSED)
async def test_passed(agent, ear, name):
    host, pieces = PASSED[name]
    wire = await agent.tunnel(f"{host}:{ear.port}")
    wire.writer.get_extra_info("socket").setsockopt(6, 1, 1)  # each piece a packet
    for piece in pieces:
        await wire.send(piece)
        await asyncio.sleep(0)
    await ear.has(b"".join(pieces))


WRONG = message(names(b"evil.test"))
CLOSED = {
    "S09 another name": ([real_hello("evil.test")], "authority_mismatch"),
    "S09 another name in TLS 1.2": ([real_hello("evil.test", tls12=True)], "authority_mismatch"),
    "S09 byte by byte": (drip(real_hello("evil.test")), "authority_mismatch"),
    "S09 in many records": ([records(WRONG, *[1] * 80)], "authority_mismatch"),
    "S09 a name that ends in ours": (
        [records(message(names(b"evil.localhost")))],
        "authority_mismatch",
    ),
    "S09 a NUL behind ours": (
        [records(message(names(b"localhost\0.evil.test")))],
        "authority_mismatch",
    ),
    "S09 an address": ([records(message(names(b"127.0.0.1")))], "authority_mismatch"),
    "S09 behind an encrypted ClientHello": (
        [records(message(ECH, names(b"evil.test")))],
        "authority_mismatch",
    ),
    "two names": ([records(message(names(b"localhost", b"evil.test")))], "malformed_request"),
    "the extension twice": (
        [records(message(names(b"localhost"), names(b"evil.test")))],
        "malformed_request",
    ),
    "a name of an unknown type": (
        [records(message(names(b"evil.test", kind=7)))],
        "malformed_request",
    ),
    "a second hello in the record": ([records(RIGHT + WRONG)], "malformed_request"),
    "an empty record first": ([bytes((22, 3, 1, 0, 0)) + records(WRONG)], "malformed_request"),
    "a warning first": ([bytes((21, 3, 1, 0, 2, 1, 0)) + records(WRONG)], "malformed_request"),
    "a warning first, byte by byte": (
        drip(bytes((21, 3, 1, 0, 2, 1, 0)) + records(WRONG)),
        "malformed_request",
    ),
    "a change of ciphers first": (
        [bytes((20, 3, 3, 0, 1, 1)) + records(WRONG)],
        "malformed_request",
    ),
    "a record of a version that Go takes": ([records(WRONG, version=b"\1\1")], "malformed_request"),
    "what only begins like TLS": ([b"\x16\3\1\x00\x05hello" + b"x" * 100], "malformed_request"),
    "a hello without end": (
        [bytes((22, 3, 1, 0, 1, 1))] + [bytes((22, 3, 1, 0, 1, 255))] * 12_000,
        "malformed_request",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
async def test_closed(agent, ear, name):
    """Nothing goes up, and the client's TLS is told why."""
    pieces, code = CLOSED[name]
    wire = await agent.tunnel(f"localhost:{ear.port}")
    wire.writer.get_extra_info("socket").setsockopt(6, 1, 1)
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0)
    answer = await wire.ended()
    expected = UNRECOGNIZED_NAME if code == "authority_mismatch" else DECODE_ERROR
    # What is still on its way to us when we close makes the kernel reset instead.
    assert answer == expected or (len(pieces) > 1 and answer == b"")
    await asyncio.wait_for(ear.ended.wait(), 5)
    assert (ear.connections, bytes(ear.received)) == (1, b"")


async def test_s09_an_address_with_a_name(agent, ear):
    """As inside TLS that is read: what was judged is the address, what would be used is the name's site."""
    wire = await agent.tunnel(f"127.0.0.1:{ear.port}")
    await wire.send(real_hello("localhost"))
    assert await wire.ended() == UNRECOGNIZED_NAME
    await asyncio.wait_for(ear.ended.wait(), 5)
    assert ear.received == b""


async def test_b18_a_connect_within(agent, ear):
    for pieces in ([b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n"], drip(b"CONNECT evil.test:443 H")):
        wire = await agent.tunnel(f"localhost:{ear.port}")
        for piece in pieces:
            with contextlib.suppress(ConnectionError):
                await wire.send(piece)
                await asyncio.sleep(0)
        answer = await wire.ended()
        assert answer.startswith(b"HTTP/1.1 400 ") or (len(pieces) > 1 and answer == b"")
        if answer:
            assert b'"error":"malformed_request"' in answer
    assert ear.received == b""


async def test_a_real_client_is_told_the_truth(agent, ear):
    wire = await agent.tunnel(f"localhost:{ear.port}")
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        await wire.start_tls(client_context(), "evil.test")
    assert ear.received == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
async def test_real_tls_goes_through(agent, authority, version, curve):
    """Also when the server wants another ClientHello, as the second curve makes it."""
    context = authority.server_context("localhost")
    context.minimum_version = context.maximum_version = version
    context.set_ecdh_curve(curve)

    async def echo(reader, writer):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while chunk := await reader.read(65536):
                writer.write(chunk)
        writer.close()

    server, port = await serving(echo, context)
    wire = await agent.tunnel(f"localhost:{port}")
    await wire.start_tls(ssl.create_default_context(cafile=str(authority.ca_file)), "localhost")
    sent = b"x" * 300_000
    wire.writer.write(sent)
    assert await asyncio.wait_for(wire.reader.readexactly(len(sent)), 5) == sent
    wire.close()
    server.close()


@pytest.mark.parametrize(
    "then", [b"localhost", b"evilhosts"], ids=["the same name", "another name"]
)
async def test_s09_the_hello_after_a_retry_request(agent, authority, then):
    """It is in plain text and may name another site: OpenSSL asks its callback again, and serves that."""
    context = authority.server_context("localhost")
    context.set_ecdh_curve("secp384r1")
    asked = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    server, port = await serving(_nothing, context)
    wire = await agent.tunnel(f"localhost:{port}")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    for _ in range(2):
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        await wire.send(outgoing.read().replace(b"localhost", then if _ else b"localhost"))
        answer = await asyncio.wait_for(_read(wire), 5)
        incoming.write(answer)
    if then == b"localhost":
        assert asked == ["localhost", "localhost"]
        assert len(answer) > 500, "the server's flight"
    else:
        assert asked == ["localhost"]
        assert answer == b""
    wire.close()
    server.close()


async def _nothing(reader, writer):
    writer.close()


async def _read(wire: Wire) -> bytes:
    try:
        return await wire.reader.read(65536)
    except ConnectionError:
        return b""


async def test_a_server_that_speaks_first_is_heard_at_once(agent):
    """Nothing is held back downwards, and its client's answer is not taken for TLS."""
    async with Ear(b"J\0\0\0\n8.0.36") as mysql:
        wire = await agent.tunnel(f"localhost:{mysql.port}")
        assert await asyncio.wait_for(wire.reader.readexactly(11), 5) == b"J\0\0\0\n8.0.36"
        await wire.send(b"\x16\3\0\1login")
        await mysql.has(b"\x16\3\0\1login")


async def test_half_a_hello_waits_ten_seconds_and_no_more(agent):
    """A silent client may stay: only what has begun has to end."""

    async def begun(data: bytes) -> tuple[float, bytes, bytes]:
        async with Ear() as ear:
            wire = await agent.tunnel(f"localhost:{ear.port}")
            began = asyncio.get_running_loop().time()
            await wire.send(data)
            answer = await wire.ended(20)
            return asyncio.get_running_loop().time() - began, answer, bytes(ear.received)

    hello = real_hello("localhost")

    async def silent() -> None:
        async with Ear() as ear:
            wire = await agent.tunnel(f"localhost:{ear.port}")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wire.reader.read(1), 12)
            await wire.send(hello)
            await ear.has(hello)

    *late, _ = await asyncio.gather(begun(b"\x16"), begun(hello[:-1]), begun(b"CONN"), silent())
    for waited, answer, received in late:
        assert 9 < waited < 15
        assert (answer, received) == (DECODE_ERROR, b"")


async def test_mismatches_are_audited_with_the_agent_and_in_aggregate(system, ear):
    """The first at once, with kind and agent; what follows within the minute is counted."""
    agent = await Agent.of(system, "forger")
    for _ in range(5):
        wire = await agent.tunnel(f"localhost:{ear.port}")
        await wire.send(real_hello("evil.test"))
        assert await wire.ended() == UNRECOGNIZED_NAME
    found = []
    async with asyncio.timeout(10):
        while not found:
            _, said = await system.api(
                "GET", "/v1/mesh/events?event_type=identity.mismatch&limit=200"
            )
            found = [e for e in said["events"] if e["details"]["claimed"].endswith("/forger")]
    (event,) = found
    assert event["agent_uri"] == "agent://acme/prod/forger"
    details = event["details"]
    assert (details["kind"], details["source"]) == ("authority_mismatch", "127.0.0.1")
    assert 1 <= details["count"] <= 5
    assert "evil.test" not in str(said), "what the agent sent is echoed nowhere"


async def test_a_kill_finds_a_hello_that_is_held_back(system, ear):
    agent = await Agent.of(system, "victim")
    wire = await agent.tunnel(f"localhost:{ear.port}")
    await wire.send(real_hello("localhost")[:-1])
    status, receipt = await system.api(
        "POST", "/v1/mesh/agents/acme.prod.victim/kill", {"wait_s": 5}
    )
    assert (status, receipt["confirmed"]) == (200, True)
    (instance,) = receipt["instances"]
    assert (instance["connections_cut"], instance["in_flight"][0]["bytes_up"]) == (1, 0)
    assert await wire.ended() == b""
    await asyncio.wait_for(ear.ended.wait(), 5)
    assert ear.received == b""


async def test_a_hold_freezes_a_hello_and_resume_lets_it_go_on(system, ear):
    agent = await Agent.of(system, "frozen")
    hello = real_hello("localhost")
    wire = await agent.tunnel(f"localhost:{ear.port}")
    await wire.send(hello[:100])
    _, receipt = await system.api(
        "POST", "/v1/mesh/agents/acme.prod.frozen/kill", {"mode": "hold", "wait_s": 5}
    )
    assert receipt["confirmed"]
    await wire.send(hello[100:])
    await asyncio.sleep(0.3)
    assert ear.received == b""
    await system.api("POST", "/v1/mesh/agents/acme.prod.frozen/resume", {})
    await ear.has(hello)


async def test_where_tls_is_read_a_hidden_hello_is_not_passed_on_either(system, ear):
    """Unread, all of such a connection would go past the gate of each request."""
    agent = await Agent.of(system, "reader", "intercept")
    wire = await agent.tunnel(f"localhost:{ear.port}")
    await wire.send(bytes((21, 3, 1, 0, 2, 1, 0)) + real_hello("localhost"))
    assert await wire.ended() == b""
    assert (ear.connections, ear.received) == (0, b"")


async def test_hundreds_of_refused_greetings_leave_nothing_behind(system, agent, ear):
    """Descriptors and memory are those of before."""
    pid = system.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    def open_files() -> int:
        return sum(len(list(Path(f"/proc/{p}/fd").iterdir())) for p in children)

    before = open_files()
    hello = real_hello("evil.test")

    async def refused() -> None:
        for _ in range(50):
            wire = await agent.tunnel(f"localhost:{ear.port}")
            await wire.send(hello)
            await wire.ended()

    await asyncio.gather(*(refused() for _ in range(10)))
    async with asyncio.timeout(5):
        while open_files() > before + 4:
            await asyncio.sleep(0.05)
    assert ear.received == b""
