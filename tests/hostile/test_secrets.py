"""One whole session with everything that could make a process say a secret; then all that was said and kept is searched.

Not only for the secrets that this test knows: for whatever looks like one, so that the workers' own key,
which nobody is ever shown, is looked for, too.

Protections removed, one at a time, and what was seen then:
- the quiet filter of the HTTP logger: `what the processes said` holds the key of the malformed request.
- holds_secret for bodies: `the database` and `the events` hold the key that was typed as a reason.
- instructions on stdin (proxy_key as an argument instead): `the command lines` hold the workers' key.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from support.client import Wire
from support.disks import children_of
from support.origin import Origin
from support.rawhttp import request, send
from support.system import CLEAN, System
from support.world import basic

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECRET = re.compile(rb"hw[ak]_[A-Za-z0-9_-]{43}")
PRIVATE_KEY = b"PRIVATE KEY-----"


@dataclass
class Session:
    """All that was made and said."""

    secrets: set[str] = field(default_factory=set)
    said: dict[str, bytes] = field(default_factory=dict)

    def searched(self) -> list[bytes]:
        """What must be nowhere: the secrets, and the forms in which they travel."""
        found = []
        for secret in self.secrets:
            found.append(secret.encode())
            found += [
                # Base64 of `label:secret` differs with what is in front; this is all of it but the ends.
                base64.b64encode(b"x" * shift + secret.encode())[4:-4]
                for shift in range(3)
            ]
        return found


def descendants(pid: int) -> list[int]:
    found = [pid]
    for child in children_of(pid):
        found += descendants(child)
    return found


def read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


async def make_credentials(system: System, session: Session) -> tuple[str, str]:
    """A token and a key; commands that show a secret show it on stdout alone."""
    token = await system.cli("token", "create", "acme/prod/mailer", "--json")
    key = await system.cli("key", "create", "ada", "--role", "operator", "--json")
    session.secrets |= {system.key, token.json()["secret"], key.json()["secret"]}
    session.said["stderr of what shows a secret"] = (token.err + key.err).encode()
    return token.json()["secret"], key.json()["secret"]


async def ordinary_calls(system: System, session: Session) -> None:
    said = ""
    for command in (
        ("kill", "acme/prod/mailer", "--reason", "why", "--json"),
        ("list", "--json"),
        ("show", "acme/prod/mailer"),
        ("kills", "--json"),
        ("token", "list"),
        ("key", "list", "--json"),
        ("resume", "acme/prod/mailer"),
        ("audit", "verify"),
        ("audit", "export"),
        ("kill", "acme/prod/mailer", "--url", "http://127.0.0.1:9"),
        ("token", "revoke", "T000000000000"),
    ):
        done = await system.cli(*command)
        assert "Traceback" not in done.err
        said += done.out + done.err
    session.said["what commands said"] = said.encode()


async def bad_calls(system: System, session: Session, token: str, key: str) -> None:
    """Secrets in every wrong place, in requests that are none, and while faults of ours are provoked."""
    answers = b""
    rows = [
        request("GET", f"/v1/keys?key={key}"),
        request("GET", f"/v1/mesh/kills/{key}", f"x-api-key: {key}"),
        request("GET", f"/{key}"),
        request("GET", "/v1/keys", f"Cookie: {key}"),
        request("POST", "/v1/mesh/heartbeat", f"x-api-key: {token}", body=b"{" + token.encode()),
        request(
            "POST",
            "/v1/mesh/kill",
            f"x-api-key: {key}",
            body=json.dumps({"selector": "agent://a/b", "reason": f"key {key}"}).encode(),
        ),
        request(
            "POST",
            "/v1/mesh/heartbeat",
            f"x-api-key: {token}",
            body=json.dumps({"metadata": {"environment": {"HTTPS_PROXY": token}}}).encode(),
        ),
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {key}\r\n bad\x01\r\n\r\n".encode(),
        f"GET /{key * 300} HTTP/1.1\r\n\r\n".encode(),
        f"{key} / HTTP/1.1\r\n\r\n".encode(),
        request("GET", "/v1/keys", f"Authorization: Bearer {key[:-1]}"),
    ]
    for row in rows:
        answers += (await send(system.control_url, row)).body
    # A fault of our own: what should be a file is a folder.
    pem = system.data_dir / "public" / "ca.pem"
    moved = pem.rename(pem.with_name("moved"))
    pem.mkdir()
    try:
        failed = await send(
            system.control_url,
            request("GET", "/ca.pem", f"Authorization: Bearer {key}", f"x-api-key: {key}"),
        )
        assert failed.status == 500
        answers += failed.body
    finally:
        pem.rmdir()
        moved.rename(pem)
    async with aiohttp.ClientSession() as client:
        made = await system.api("POST", "/v1/keys", {"name": "evil", "role": "proxy"})
        session.secrets.add(made[1]["secret"])
        socket = await client.ws_connect(
            f"{system.control_url}/v1/proxies/connect",
            headers={"Authorization": f"Bearer {made[1]['secret']}"},
        )
        await socket.send_str(
            json.dumps({"type": "hello", "proxy_id": made[1]["secret"], "pid": 1})
        )
        await socket.receive()
        await socket.close()
    session.said["what the control server answered"] = answers


async def agents_calls(system: System, session: Session, origin: Origin, token: str) -> None:
    """Right and wrong credentials through the proxy, and heads that are none."""
    good = f"Proxy-Authorization: {basic('acme.prod.mailer', token)}"
    wrong = f"Proxy-Authorization: {basic('acme.prod.other', token)}"
    answers = b""
    for method, target, *headers in (
        ("GET", f"{origin.url}/a", f"Host: {origin.host}", good),
        ("GET", f"{origin.url}/a", f"Host: {origin.host}", wrong),
        ("CONNECT", "127.0.0.1:9", "Host: 127.0.0.1:9", good),
        ("GET", f"{origin.url}/a", f"Host: {origin.host}", good, good),
        ("GET", f"{origin.url}/a", f"Host: {origin.host}", f"{good}\x01"),
        ("POST", "http://haltwire.internal/v1/mesh/heartbeat", "Host: haltwire.internal", good),
        ("GET", "http://haltwire.internal/nothing", "Host: haltwire.internal", good),
    ):
        wire = await Wire.open(system.port)
        found = await wire.request(method, target, *headers)
        answers += found.body + json.dumps(found.headers).encode()
        wire.close()
    session.said["what the proxy answered"] = answers
    session.said["what the origin got"] = b"".join(bytes(seen.raw) for seen in origin.connections)
    assert origin.requests, "the right credentials were let through"
    session.said["what the origin got"] += repr(origin.requests).encode()


async def a_run(system: System, session: Session) -> None:
    """`haltwire run`, looked at while its command lives."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "haltwire_cli",
        "run",
        "acme/prod/runner",
        "--",
        "sh",
        "-c",
        "echo $HTTPS_PROXY; read line",
        env={**CLEAN, "HALTWIRE_DATA_DIR": str(system.data_dir)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    proxy_url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    session.secrets.add(SECRET.search(proxy_url.encode())[0].decode())
    pids = [*descendants(system.process.pid), *descendants(process.pid)]
    assert len(pids) >= 6, "up, control, two workers, run, and its command"
    session.said["the command lines"] = b"\n".join(read(f"/proc/{pid}/cmdline") for pid in pids)
    assert session.said["the command lines"].count(b"haltwire_cli") == 5
    ours = [*descendants(system.process.pid), process.pid]
    session.said["the environments of our processes"] = b"".join(
        read(f"/proc/{pid}/environ") for pid in ours
    )
    assert b"PATH=" in session.said["the environments of our processes"]
    out, err = await asyncio.wait_for(process.communicate(b"\n"), 20)
    assert process.returncode == 0, err
    session.said["what run said"] = out + err


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(tmp_path_factory):
    found = Session()
    system = System(tmp_path_factory.mktemp("secrets") / "data", "--workers", "2")
    async with Origin() as origin, system:
        token, key = await make_credentials(system, found)
        await agents_calls(system, found, origin, token)
        await ordinary_calls(system, found)
        await bad_calls(system, found, token, key)
        await a_run(system, found)
        _, events = await system.api("GET", "/v1/mesh/events?limit=1000")
        found.said["the events"] = json.dumps(events).encode()
        assert len(events["events"]) > 10
        kept = {p.name: p for p in system.data_dir.rglob("*") if p.is_file()}
        assert {"haltwire.db", "haltwire.db-wal", "ledger.db", "endpoints.json"} <= set(kept)
        found.said["the database"] = b"".join(
            p.read_bytes() for name, p in kept.items() if name.startswith("haltwire.db")
        )
        keys = {"admin.key", "haltwire-ca.pem", "listener.pem"}
        assert all(kept[name].stat().st_mode & 0o777 == 0o600 for name in keys)
        others = [p for name, p in kept.items() if name not in keys]
        found.said["every other file"] = b"".join(p.read_bytes() for p in others)
        await system.stop()
        found.said["what the processes said"] = system.output.encode()
        assert "/ca.pem failed" in system.output, "the fault was logged"
        assert "Traceback" in system.output
    return found


PLACES = (
    "what the processes said",
    "what commands said",
    "stderr of what shows a secret",
    "what run said",
    "what the control server answered",
    "what the proxy answered",
    "what the origin got",
    "the command lines",
    "the environments of our processes",
    "the events",
    "the database",
    "every other file",
)


@pytest.mark.parametrize("place", PLACES)
async def test_no_secret_is_in(session, place):
    said = session.said[place]
    for form in session.searched():
        assert form not in said, place
    assert PRIVATE_KEY not in said
    assert not SECRET.search(said), "something that looks like a secret"


async def test_every_place_was_looked_at_and_the_search_finds_what_it_is_for(session):
    assert set(session.said) == set(PLACES)
    assert len(session.secrets) == 5
    one = next(iter(session.secrets))
    header = basic("acme.prod.mailer", one).encode()
    assert any(form in header for form in session.searched())
