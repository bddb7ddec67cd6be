"""The control server of a real `haltwire up`, under everything that a browser, an agent or a stranger can send it.

Protections removed, one at a time, and what was seen then:
- perimeter.handle_error: `no HTTP`, `a long line` and seven more get aiohttp's own answer, without our headers.
- the Content-Encoding check: `a gzip bomb` is read and answered 400 as bad JSON, not refused unread.
- holds_secret: secrets in URLs are answered 401 and 404, and a key typed as a reason is stored (200).
- the limit of strangers: the control server has 1,050 files open while the crowd is there.
- the Origin check in connect_proxy: the three browsers' WebSockets are opened.
- screen in link.receive: eight rows of MALICE fail; kills are not answered in time from then on.
- the check of peer.key in Following: the liar gets a snapshot, and the worker's own link is closed.
- the bucket in FailedAttempts: the 130th wrong key is answered 401.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from haltwire.wire import messages
from haltwire_control.perimeter import SECURITY_HEADERS, STRANGERS_MOST
from support.disks import control_pid
from support.rawhttp import answer, connect, request, send
from support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")
KILL, BEAT = "/v1/mesh/kill", "/v1/mesh/heartbeat"
NOBODY = "hwk_" + "n" * 43


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    async with System(tmp_path_factory.mktemp("control") / "data", "--workers", "1") as running:
        yield running


def filled(text: str, system: System) -> str:
    return text.replace("KEY", system.key)


PLACES = {
    "in the query": ("GET", "/v1/keys?key=KEY", (), b"", 400, "secret_in_url"),
    "in the query of an open route": ("GET", "/healthz?x=KEY", (), b"", 400, "secret_in_url"),
    "in the query, encoded": ("GET", "/v1/keys?k=%68KEY", (), b"", 400, "secret_in_url"),
    "in the path": ("GET", "/v1/mesh/kills/KEY", (), b"", 400, "secret_in_url"),
    "in the path, encoded": ("GET", "/v1/mesh/kills/%4bKEY", (), b"", 400, "secret_in_url"),
    "as user of the URL": ("GET", "http://KEY@localhost/v1/keys", (), b"", 401, None),
    "in a cookie": ("GET", "/v1/keys", ("Cookie: key=KEY",), b"", 401, "credentials_required"),
    "as Basic": ("GET", "/v1/keys", ("Authorization: Basic KEY",), b"", 401, None),
    "as a proxy's": ("GET", "/v1/keys", ("Proxy-Authorization: Bearer KEY",), b"", 401, None),
    "in the body alone": ("POST", KILL, (), b'{"key": "KEY"}', 401, "credentials_required"),
    "in the body too": (
        "POST",
        KILL,
        ("x-api-key: KEY",),
        b'{"selector": "agent://a/b", "reason": "KEY"}',
        422,
        "secret_in_body",
    ),
    "twice": (
        "GET",
        "/v1/keys",
        ("Authorization: Bearer KEY", f"Authorization: Bearer {NOBODY}"),
        b"",
        400,
        "credentials_ambiguous",
    ),
    "and another one": (
        "GET",
        "/v1/keys",
        ("Authorization: Bearer KEY", f"x-api-key: {NOBODY}"),
        b"",
        400,
        "credentials_ambiguous",
    ),
    "the same in both headers": (
        "GET",
        "/v1/keys",
        ("Authorization: Bearer KEY", "x-api-key: KEY"),
        b"",
        200,
        None,
    ),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_a_key_counts_in_a_header_alone(shared, place):
    method, target, headers, body, status, code = place
    found = await send(
        shared.control_url,
        request(
            method,
            filled(target, shared),
            *(filled(header, shared) for header in headers),
            body=body.replace(b"KEY", shared.key.encode()),
        ),
    )
    assert found.status == status, found
    if code:
        assert found.code == code
    if status != 200:
        assert shared.key.encode() not in found.body, "it is not said back either"


ANYTHING = {
    "an answer": (request("GET", "/healthz"), 200),
    "no route": (request("GET", "/nothing"), 404),
    "no such method": (request("DELETE", "/healthz"), 405),
    "a method of its own": (request("BREW", "/healthz"), 400),
    "no key": (request("GET", "/v1/keys"), 401),
    "a preflight": (
        request(
            "OPTIONS",
            KILL,
            "Origin: https://evil.test",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization",
        ),
        405,
    ),
    "a simple request from a page": (
        request("POST", KILL, "Origin: https://evil.test", "Content-Type: text/plain", body=b"{}"),
        401,
    ),
    "a page under a rebound name": (
        b"GET /healthz HTTP/1.1\r\nHost: evil.test\r\nOrigin: http://evil.test\r\n\r\n",
        200,
    ),
    "a body too large": (
        request("POST", KILL, "x-api-key: KEY", "Content-Length: 3000000", body=b"{"),
        413,
    ),
    "a gzip bomb": (
        request(
            "POST",
            KILL,
            "x-api-key: KEY",
            "Content-Encoding: gzip",
            body=gzip.compress(b'{"reason": "' + b"x" * 100_000_000 + b'"}', 1),
        ),
        415,
    ),
    "deep JSON": (request("POST", KILL, "x-api-key: KEY", body=b"[" * 500_000), 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00 hello\r\n\r\n", 400),
    "a bare line feed in a header": (b"GET /healthz HTTP/1.1\r\nA: b\nC: d\r\n\r\n", 400),
    "a control character": (b"GET /healthz HTTP/1.1\r\nA: \x01\r\n\r\n", 400),
    "a long line": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
    "a long header": (request("GET", "/healthz", "A: " + "x" * 100_000), 431),
    "many headers": (request("GET", "/healthz", *["A: b"] * 1000), 400),
    "length and chunks": (
        request("POST", KILL, "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n"),
        400,
    ),
    "a chunk size that is none": (
        request("POST", KILL, "x-api-key: KEY", "Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
        400,
    ),
    "an unknown expectation": (request("POST", KILL, "Expect: wonders"), 417),
}


@pytest.mark.parametrize(("data", "status"), ANYTHING.values(), ids=ANYTHING)
async def test_every_answer_is_closed_to_pages_and_tells_no_version(shared, data, status):
    found = await send(shared.control_url, data.replace(b"KEY", shared.key.encode()))
    assert found.status == status, found
    for name, value in SECURITY_HEADERS.items():
        assert found.headers[name.lower()] == value
    assert found.headers["server"] == "haltwire"
    assert not any(name.startswith("access-control-") for name in found.headers)
    assert b"aiohttp" not in found.body
    assert b"Traceback" not in found.body


OPEN = ("/healthz", "/readyz", "/health")


@pytest.mark.parametrize("path", OPEN)
async def test_what_is_open_tells_nothing(shared, path):
    found = await send(shared.control_url, request("GET", path))
    said = json.loads(found.body)
    assert said.pop("ok") is True
    assert set(said) <= {"version"}


async def test_a_plain_curl_d_goes_on_working(shared):
    """README's agents say so, and the published AXME client too: no Content-Type is asked for."""
    status, made = await shared.api("POST", "/v1/tokens", {"selector": "agent://acme/prod/curl"})
    assert status == 201
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
        found = await send(
            shared.control_url,
            request(
                "POST",
                BEAT,
                f"Authorization: Bearer {made['secret']}",
                f"Content-Type: {kind}",
                body=b'{"metadata": {"sent": 1}}',
            ),
        )
        assert found.status == 200, found


async def test_wrong_keys_slow_down_nobody_else(shared):
    """429 with a time to wait, for wrong keys; the right one works at once, from the same address."""
    wrong = request("POST", KILL, f"Authorization: Bearer {NOBODY}", body=b"{}")
    answers = [await send(shared.control_url, wrong) for _ in range(130)]
    assert answers[0].code == "credentials_invalid"
    assert answers[-1].status == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    began = time.monotonic()
    status, receipt = await shared.api("POST", KILL, {"selector": "agent://acme/prod/slow"})
    assert (status, [p["state"] for p in receipt["proxies"]]) == (200, ["applied"]), receipt
    assert time.monotonic() - began < 2


async def test_a_crowd_of_idle_connections_keeps_no_operator_out(shared):
    """Four times as many as are kept; some have begun a request that they never end."""
    address = urlsplit(shared.control_url)
    with ExitStack() as stack:
        crowd = []
        for number in range(4 * STRANGERS_MOST):
            one = stack.enter_context(
                socket.create_connection((address.hostname, address.port), timeout=5)
            )
            if number % 2:
                one.sendall(b"POST /v1/mesh/kill HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            crowd.append(one)
        began = time.monotonic()
        status, receipt = await shared.api("POST", KILL, {"selector": "agent://acme/prod/crowd"})
        assert (status, [p["state"] for p in receipt["proxies"]]) == (200, ["applied"]), receipt
        assert time.monotonic() - began < 3
        open_files = len(list(Path(f"/proc/{control_pid(shared.process.pid)}/fd").iterdir()))
        assert open_files < STRANGERS_MOST + 100, "the oldest made room"


async def test_a_body_that_never_comes_is_not_waited_for(shared):
    reader, writer = await connect(shared.control_url)
    writer.write(request("POST", KILL, f"x-api-key: {shared.key}", "Content-Length: 9", body=b"{"))
    found = await answer(reader)
    assert (found.status, found.code) == (408, "body_too_slow")
    assert found.headers["connection"] == "close"
    writer.close()


# The link of proxies.


async def proxy_key(system: System, name: str) -> str:
    status, made = await system.api("POST", "/v1/keys", {"name": name, "role": "proxy"})
    assert status == 201, made
    return made["secret"]


async def dial(session: aiohttp.ClientSession, system: System, key: str, **headers: str):
    return await session.ws_connect(
        f"{system.control_url}/v1/proxies/connect",
        headers={"Authorization": f"Bearer {key}", **headers},
        max_msg_size=0,
    )


HANDSHAKES = {
    "an admin": ("admin", {}, 403),
    "nobody": (NOBODY, {}, 401),
    "a browser": ("proxy", {"Origin": "https://evil.test"}, 403),
    "a browser on this very origin": ("proxy", {"Origin": "http://127.0.0.1"}, 403),
    "a sandboxed page": ("proxy", {"Origin": "null"}, 403),
}


@pytest.mark.parametrize("row", HANDSHAKES.values(), ids=HANDSHAKES)
async def test_who_opens_no_link(shared, row, request):
    who, headers, status = row
    key = shared.key if who == "admin" else who
    if who == "proxy":
        key = await proxy_key(shared, f"p{list(HANDSHAKES).index(request.node.callspec.id)}")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await dial(session, shared, key, **headers)
    # Not in this case: its address has shown many wrong keys before.
    assert refused.value.status in ((status, 429) if key == NOBODY else (status,))


def hello(**more: object) -> dict:
    return {
        "type": "hello",
        "proxy_id": "evil",
        "host": "elsewhere",
        "boot_id": "b",
        "pid": 4,
        "pid_namespace": "pid:[4]",
        "started_ticks": 5,
        "version": "0",
        "epoch": None,
        "revision": 0,
        **more,
    }


def report(**more: object) -> dict:
    instance = {
        "agent": "agent://acme/prod/link",
        "instance": "i-1",
        "seen_at": "2026-11-22T09:30:00Z",
        "connections_cut": 1,
        "last_byte_at": None,
    }
    return {
        "type": "report",
        "kill_id": "K1",
        "now": "2026-11-22T09:30:00Z",
        "instances": [{**instance, **more}],
    }


def mismatch(**more: object) -> dict:
    one = {"source": "192.0.2.1", "kind": "label", "agent": None, "count": 1, **more}
    return {"type": "usage", "sequence": 1, "mismatches": [one]}


def renew(**more: object) -> dict:
    now = "2026-11-22T09:30:00Z"
    return {"type": "renew", "sent_at_boot": 1.0, "now": now, "epoch": "e", "revision": 0, **more}


MALICE = {
    "no JSON": ["{"],
    "a bottomless pit": ["[" * 100_000],
    "a hello of a pid that no store holds": [hello(pid=2**80)],
    "a hello with a name of a megabyte": [hello(proxy_id="x" * 1_000_000)],
    "a time that no offset can be added to": [
        hello(),
        renew(now="0001-01-01T00:00:00Z"),
        report(seen_at="9999-12-31T23:59:59Z"),
    ],
    "counts beyond all": [hello(), report(connections_cut=10**300)],
    "a mismatch of a megabyte": [hello(), mismatch(source="x" * 1_000_000)],
    "no numbers": [hello(), '{"type": "renew", "sent_at_boot": NaN, "now": 1}'],
    "only we say that": [hello(), {"type": "delta", "previous": 0, "revision": 9}],
    "half a character": [hello(host="\ud800")],
}


@pytest.mark.parametrize("said", MALICE.values(), ids=MALICE)
async def test_a_proxys_key_breaks_nothing_for_others(shared, said, request):
    """Its link is closed; the others' links, the store and every answer are as before."""
    number = list(MALICE).index(request.node.callspec.id)
    before = control_pid(shared.process.pid)
    key = await proxy_key(shared, f"evil-{number}")
    async with aiohttp.ClientSession() as session:
        socket = await dial(session, shared, key)
        for one in said:
            await socket.send_str(one if isinstance(one, str) else json.dumps(one))
        async with asyncio.timeout(10):
            while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        await socket.close()
    status, receipt = await shared.api(
        "POST", KILL, {"selector": f"agent://acme/prod/link-{number}", "wait_s": 0.5}
    )
    assert status == 200, receipt
    own = [proxy for proxy in receipt["proxies"] if not proxy["proxy_id"].startswith("evil")]
    assert [proxy["state"] for proxy in own] == ["applied"]
    assert (await shared.api("GET", "/v1/mesh/audit/verify"))[1]["ok"] is True
    status, events = await shared.api("GET", "/v1/mesh/events?limit=1000")
    assert len(json.dumps(events)) < 1_000_000
    assert control_pid(shared.process.pid) == before


async def test_a_proxys_key_speaks_for_no_other_proxy(shared):
    """It says that it is the worker of this `up`, in every detail, and would acknowledge kills for it."""
    _, listed = await shared.api("GET", "/v1/proxies")
    worker = next(p for p in listed["proxies"] if p["state"] == "connected")
    from haltwire_control.presence import this_machine

    here = this_machine()
    stat = Path(f"/proc/{worker['pid']}/stat").read_text()
    lie = hello(
        proxy_id=worker["proxy_id"],
        host=here.host,
        boot_id=here.boot_id,
        pid=worker["pid"],
        pid_namespace=here.pid_namespace,
        started_ticks=int(stat.rpartition(")")[2].split()[19]),
    )
    key = await proxy_key(shared, "liar")
    async with aiohttp.ClientSession() as session:
        socket = await dial(session, shared, key)
        await socket.send_str(json.dumps(lie))
        async with asyncio.timeout(10):
            assert (await socket.receive()).type is not aiohttp.WSMsgType.TEXT, "no snapshot"
        await socket.close()
    _, listed = await shared.api("GET", "/v1/proxies")
    still = next(p for p in listed["proxies"] if p["pid"] == worker["pid"])
    assert still["connected_at"] == worker["connected_at"], "its link was not taken over"


async def test_rubbish_after_a_hello_is_survived(shared):
    """Well-formed messages with fields swapped for each other's values, from one fixed seed."""
    dice = random.Random(4)
    values = [None, True, -1, 2**63, 1.5, "", "x" * 500, "agent://a/b", [], {}, [[]], "9999-99-99Z"]
    samples = [renew(), report(), mismatch(), {"type": "bye", "proxy_id": "evil"}, hello()]
    before = control_pid(shared.process.pid)
    key = await proxy_key(shared, "rubbish")
    async with aiohttp.ClientSession() as session:
        for number in range(60):
            socket = await dial(session, shared, key)
            await socket.send_str(json.dumps(hello(pid=1000 + number)))
            for _ in range(4):
                sample = json.loads(json.dumps(dice.choice(samples)))
                nested = sample.get("instances") or sample.get("mismatches") or [sample]
                target = dice.choice([sample, nested[0]])
                target[dice.choice(list(target))] = dice.choice(values)
                try:
                    await socket.send_str(json.dumps(sample))
                except ConnectionError:
                    break
            await socket.close()
    status, receipt = await shared.api("POST", KILL, {"selector": "agent://a/b", "wait_s": 0.5})
    assert status == 200, receipt
    assert control_pid(shared.process.pid) == before
    assert messages.loads(json.dumps(hello())).pid == 4, "the samples are messages"


async def test_what_all_of_this_left_behind(tmp_path, shared):
    """Last: no traceback, and no key, in all that the processes said."""
    status, events = await shared.api("GET", "/v1/mesh/events?limit=1000")
    assert status == 200
    assert shared.key not in json.dumps(events)
    await shared.stop()
    assert shared.key not in shared.output
    assert NOBODY not in shared.output
    assert "Traceback" not in shared.output, shared.output
