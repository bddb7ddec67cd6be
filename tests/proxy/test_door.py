"""The front door: who, whether, whereto, in this order, and what the client is told."""

import asyncio
import contextlib
import errno
import socket
import threading
from pathlib import Path

import pytest
import uvloop
from haltwire_proxy import door, gate
from support.client import Wire, tls_tunnel, tunnel
from support.world import INTERCEPTED, SECRET, World, basic, raw_request, rule

CREDENTIALS = f"Proxy-Authorization: {basic('acme.prod.mailer', SECRET)}"


@pytest.mark.parametrize(
    ("name", "raw", "status", "code"),
    [
        ("TLS to the proxy port", b"\x16\x03\x01\x02\x00\x01", 400, "malformed_request"),
        ("origin form", b"GET / HTTP/1.1\r\nHost: a\r\n{auth}\r\n\r\n", 400, "malformed_request"),
        (
            "https in the open",
            b"GET https://a/ HTTP/1.1\r\n{auth}\r\n\r\n",
            400,
            "malformed_request",
        ),
        ("no port", b"CONNECT a.test HTTP/1.1\r\n{auth}\r\n\r\n", 400, "malformed_request"),
        ("userinfo", b"CONNECT a@b.test:1 HTTP/1.1\r\n{auth}\r\n\r\n", 400, "malformed_request"),
        (
            "two credentials",
            b"CONNECT a.test:1 HTTP/1.1\r\n{auth}\r\n{auth}\r\n\r\n",
            400,
            "malformed_request",
        ),
        (
            "endless head",
            b"GET http://a/ HTTP/1.1\r\nX: " + b"a" * 70_000,
            431,
            "headers_too_large",
        ),
        (
            "agent API over TLS",
            b"CONNECT haltwire.internal:443 HTTP/1.1\r\n{auth}\r\n\r\n",
            403,
            "destination_denied",
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_and_closed(world, name, raw, status, code):
    answer = await raw_request(world.port, raw.replace(b"{auth}", CREDENTIALS.encode()))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert f'"error":"{code}"'.encode() in answer
    assert b"Connection: close" in answer
    assert b"hwa_" not in answer


async def test_no_credentials_get_a_challenge_that_can_be_answered_on_the_same_connection(
    world, origin
):
    """git, Java and Chromium send credentials only after a 407."""
    wire = await Wire.open(world.port)
    target = f"{origin.url}/echo"
    challenge = await wire.request("GET", target, f"Host: {origin.host}")
    assert challenge.status == 407
    assert challenge.headers["proxy-authenticate"] == 'Basic realm="haltwire"'
    assert "connection" not in challenge.headers
    answer = await wire.request("GET", target, f"Host: {origin.host}", CREDENTIALS)
    assert answer.status == 200
    wire.close()
    assert len(origin.requests) == 1


async def test_a_challenge_is_not_repeated_for_ever(world):
    wire = await Wire.open(world.port)
    for _ in range(door.MAX_CHALLENGES):
        assert (await wire.request("CONNECT", "a.test:1")).status == 407
    last = await wire.request("CONNECT", "a.test:1")
    assert last.headers["connection"] == "close"
    assert await wire.ended() == b""
    wire.close()


async def test_a_wrong_secret_is_counted_without_the_secret(world):
    wire = await Wire.open(world.port)
    forged = f"Proxy-Authorization: {basic('acme.prod.mailer', 'hwa_' + 'x' * 43)}"
    assert (await wire.request("CONNECT", "a.test:1", forged)).status == 407
    wire.close()
    (mismatch,) = world.enforcer.tallies.take_mismatches()
    assert (mismatch.source, mismatch.kind) == ("127.0.0.1", "proxy_credentials_invalid")
    assert "hwa_" not in repr(mismatch)


async def test_nothing_behind_a_refused_connect_is_served(world, origin):
    """K04: bytes pipelined behind a refusal were once read as the next proxy request."""
    world.kill("agent://acme/prod/mailer")
    behind = f"GET {origin.url}/echo HTTP/1.1\r\nHost: {origin.host}\r\n{CREDENTIALS}\r\n\r\n"
    answer = await raw_request(
        world.port, f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n{behind}".encode()
    )
    assert answer.count(b"HTTP/1.1") == 1
    assert b"agent_killed" in answer
    assert origin.connections == []


async def test_a_tunnel_carries_bytes_sent_before_it_was_open(world, origin):
    early = f"GET /echo HTTP/1.1\r\nHost: {origin.host}\r\n\r\n"
    wire = await Wire.open(world.port)
    await wire.send(f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n{early}".encode())
    assert (await wire.answer(head=True)).status == 200
    assert (await wire.answer()).json()["target"] == "/echo"
    wire.close()


async def test_an_upstream_that_is_not_there_is_named(world):
    answer = await raw_request(
        world.port, f"CONNECT 127.0.0.1:1 HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"upstream_unreachable" in answer
    assert b"127.0.0.1" in answer


async def test_a_killed_agent_is_told_who_stopped_it_and_why(world, origin):
    world.kill("agent://acme/prod/mailer", "broken link")
    wire = await Wire.open(world.port)
    answer = await wire.request("GET", f"{origin.url}/echo", f"Host: {origin.host}", CREDENTIALS)
    wire.close()
    assert answer.status == 403
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["proxy-status"].startswith("haltwire; error=")
    body = answer.json()
    assert (body["error"], body["reason"], body["actor"]) == (
        "agent_killed",
        "broken link",
        "key:ada",
    )
    assert body["agent_uri"] == "agent://acme/prod/mailer"
    assert origin.connections == []


async def test_resume_lets_new_connections_through_and_old_ones_stay_dead(world, origin):
    wire = await tunnel(world.port, origin.host, "acme.prod.mailer", SECRET)
    killed = world.kill("agent://acme/prod/mailer")
    await wire.ended()
    world.resume(killed.ack.kills[0])
    again = await tunnel(world.port, origin.host, "acme.prod.mailer", SECRET)
    assert (await again.request("GET", "/echo", f"Host: {origin.host}")).status == 200
    again.close()


async def test_where_we_intercept_the_refusal_comes_inside_tls_until_there_are_too_many(
    world, tls_origin
):
    world.kill("agent://acme/prod/reader")
    target = f"localhost:{tls_origin.port}"
    wire = await tls_tunnel(world.port, target, "acme.prod.reader", INTERCEPTED, world.ca_file)
    answer = await wire.request("GET", "/echo", f"Host: {target}")
    assert (answer.status, answer.json()["error"]) == (403, "agent_killed")
    await wire.ended()
    auth = f"Proxy-Authorization: {basic('acme.prod.reader', INTERCEPTED)}"
    statuses = set()
    for _ in range(12):
        probe = await Wire.open(world.port)
        statuses.add((await probe.request("CONNECT", target, auth)).status)
        probe.close()
    assert statuses == {200, 403}
    assert tls_origin.connections == []


async def test_without_a_lease_nothing_passes_and_what_lives_is_cut(world, origin):
    wire = await tunnel(world.port, origin.host, "acme.prod.mailer", SECRET)
    await wire.request("GET", "/hang", f"Host: {origin.host}", read=False)
    await asyncio.wait_for(origin.arrived.wait(), 2)
    world.lose_lease()
    await wire.send(b"more")  # the next forwarding write asks for the lease
    assert await wire.ended() == b""
    await asyncio.wait_for(origin.connections[0].ended.wait(), 2)
    assert b"more" not in origin.connections[0].raw
    refused = await raw_request(
        world.port, f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n".encode()
    )
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"enforcement_unknown" in refused
    assert b"Retry-After:" in refused
    assert len(origin.connections) == 1


async def test_a_revoked_token_cuts_its_live_connections_and_is_refused(world, origin):
    wire = await tunnel(world.port, origin.host, "acme.prod.mailer", SECRET)
    world.revoke(rule(SECRET, "agent://acme/prod/mailer").token_id)
    assert await wire.ended() == b""
    probe = await Wire.open(world.port)
    assert (await probe.request("CONNECT", origin.host, CREDENTIALS)).status == 407
    probe.close()


async def test_a_kill_during_the_dial_drops_it(world, monkeypatch):
    started, release = asyncio.Event(), asyncio.Event()

    async def slow_dial(*_):
        started.set()
        await release.wait()

    monkeypatch.setattr(world.dialer, "dial", slow_dial)
    wire = await Wire.open(world.port)
    await wire.request("CONNECT", "slow.test:443", CREDENTIALS, read=False)
    await asyncio.wait_for(started.wait(), 2)
    enforced = world.kill("agent://acme/prod/mailer")
    assert enforced.ack.connections_cut == 1
    assert enforced.reports()[0].instances[0].in_flight[0].sent == "none"
    assert await wire.ended() == b""
    wire.close()


async def test_the_gate_is_asked_again_when_the_dial_is_done(world, origin, monkeypatch):
    dial = world.dialer.dial

    async def late(*to):
        world.lose_lease()
        return await dial(*to)

    monkeypatch.setattr(world.dialer, "dial", late)
    answer = await raw_request(
        world.port, f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\nearly".encode()
    )
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"enforcement_unknown" in answer
    assert world.enforcer.connections.count == 0


@pytest.mark.parametrize("step", ["parse_head", "admit"])
async def test_a_fault_in_any_step_refuses(world, origin, monkeypatch, step, caplog):
    def fail(*_, **__):
        raise RuntimeError("injected")

    monkeypatch.setattr(door, step, fail)
    answer = await raw_request(
        world.port, f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"enforcement_failed" in answer
    assert origin.connections == []


async def test_a_fault_in_the_decision_refuses(world, origin, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(gate, "decide", fail)
    answer = await raw_request(
        world.port, f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n".encode()
    )
    assert b"enforcement_failed" in answer
    assert origin.connections == []


async def test_a_head_that_never_ends_is_not_waited_for(world):
    world.limit(head_s=0.05)
    wire = await Wire.open(world.port)
    await wire.send(b"CONNECT a.te")
    assert (await wire.answer()).json()["error"] == "request_timeout"
    assert await wire.ended() == b""


async def test_a_client_that_says_nothing_is_told_nothing(world):
    """What waits unused in a client's pool would take a 408 for the answer to its next request."""
    world.limit(head_s=0.05)
    wire = await Wire.open(world.port)
    assert await wire.ended() == b""


def test_a_server_that_speaks_first_is_heard(data_dir, authority):
    """uvloop, which workers run on, reads SSH's or SMTP's greeting before whoever waits for the dial runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    target = f"127.0.0.1:{listener.getsockname()[1]}"

    def greet():
        for _ in range(20):
            accepted, _ = listener.accept()
            accepted.sendall(b"220 hello\r\n")
            accepted.close()

    async def scenario():
        async with World(data_dir, authority.ca_file, "http://127.0.0.1:1") as world:
            for _ in range(20):
                wire = await tunnel(world.port, target, "acme.prod.mailer", SECRET)
                assert await asyncio.wait_for(wire.reader.read(), 2) == b"220 hello\r\n"
                wire.close()
            async with asyncio.timeout(2):
                while world.enforcer.connections.count:
                    await asyncio.sleep(0.01)

    greeter = threading.Thread(target=greet, daemon=True)
    greeter.start()
    uvloop.run(scenario())
    greeter.join(2)
    listener.close()


@pytest.mark.parametrize("loop", [asyncio, uvloop])
def test_a_client_that_has_reset_before_it_was_accepted_leaves_nothing(data_dir, authority, loop):
    """uvloop knows no peer name of such a one; its descriptor was once kept for ever."""

    async def scenario():
        async with World(data_dir, authority.ca_file, "http://127.0.0.1:1") as world:
            faults = []
            asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
            await asyncio.sleep(0.05)
            before = len(list(Path("/proc/self/fd").iterdir()))
            for _ in range(20):
                client = socket.create_connection(("127.0.0.1", world.port))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
            await asyncio.sleep(0.2)
            assert faults == []
            assert world.services.doors == set()
            assert len(list(Path("/proc/self/fd").iterdir())) <= before

    loop.run(scenario())


async def test_a_refused_head_request_gets_no_body(world):
    world.kill("agent://acme/prod/mailer")
    answer = await raw_request(
        world.port,
        f"HEAD http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{CREDENTIALS}\r\n\r\n".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("request_line", ["CONNECT {} HTTP/1.1", "GET http://{}/echo HTTP/1.1"])
async def test_a_fault_in_the_dial_ends_the_connection(
    world, origin, monkeypatch, caplog, request_line
):
    """It would else wait for ever, for an answer that nobody gives."""

    async def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(world.dialer, "dial", fail)
    wire = await Wire.open(world.port)
    head = f"{request_line.format(origin.host)}\r\nHost: {origin.host}\r\n{CREDENTIALS}\r\n\r\n"
    await wire.send(head.encode())
    await wire.ended()
    assert world.enforcer.connections.count == 0
    assert origin.connections == []


async def test_a_fault_in_the_hand_over_ends_the_connection(world, origin, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(world.inspector, "adopt", fail)
    wire = await Wire.open(world.port)
    await wire.request("GET", f"{origin.url}/echo", CREDENTIALS, read=False)
    await wire.ended()
    assert world.enforcer.connections.count == 0


async def test_early_bytes_do_not_undo_the_pause_for_a_slow_upstream(world, monkeypatch):
    dial = world.dialer.dial

    async def slowly(*to):
        await asyncio.sleep(0.1)
        return await dial(*to)

    monkeypatch.setattr(world.dialer, "dial", slowly)
    monkeypatch.setattr(door, "MAX_EARLY_BYTES", 500_000)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    target = f"127.0.0.1:{listener.getsockname()[1]}"
    wire = await Wire.open(world.port)
    head = f"CONNECT {target} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(0.6):
            await wire.send(head + b"x" * 1_000_000)
            for _ in range(400):
                await wire.send(b"x" * 65536)
    except TimeoutError:
        pass
    (connection,) = world.enforcer.connections.everything()
    assert connection.upstreams[0].unwritten() < 1_000_000
    wire.close()
    listener.close()


async def test_a_worker_that_stops_serves_nobody_it_accepted_a_moment_ago(world, origin):
    world.services.closed = True
    wire = await Wire.open(world.port)
    with contextlib.suppress(ConnectionError):
        await wire.request("CONNECT", origin.host, CREDENTIALS, read=False)
    assert await wire.ended() == b""
    assert origin.connections == []


async def test_being_out_of_descriptors_is_our_own_fault_and_not_the_upstreams(
    world, origin, monkeypatch, caplog
):
    async def out_of_descriptors(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(world.dialer, "dial", out_of_descriptors)
    answer = await raw_request(
        world.port, f"CONNECT {origin.host} HTTP/1.1\r\n{CREDENTIALS}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"enforcement_failed" in answer
