"""TLS of the control server and of the proxy's port, on the running program: who is believed, and what passes over it.

Protections that were taken away once, and what was then seen, are in the docstrings.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import sys
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from haltwire_proxy.authority import ensure_ca
from haltwire_proxy.leaf import issue_leaf
from support.certificates import Impostor, write_pair
from support.client import serving
from support.ends import NUMBERS, soon
from support.operator import Operator
from support.origin import Origin
from support.system import CLEAN, System, run
from support.tls import TlsWire, trusting
from support.world import basic

pytestmark = pytest.mark.asyncio(loop_scope="module")
ANYWHERE = ("--control-listen", "0.0.0.0:0", "--workers", "2")
LOCALLY = ("--allow-to", "127.0.0.0/8")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everywhere(tmp_path_factory, authority):
    """The control server can be reached from elsewhere. Its environment names what an attacker would have it trust."""
    folder = tmp_path_factory.mktemp("everywhere")
    (folder / "evil").mkdir()
    evil = write_pair(folder / "evil", "localhost")
    env = {**CLEAN, "SSL_CERT_FILE": str(evil[0]), "SSLKEYLOGFILE": str(folder / "keys")}
    options = (*ANYWHERE, "--upstream-ca", str(authority.ca_file))
    async with System(folder / "data", *options, env=env) as system:
        yield system
    # What it has said in all the tests of this module: nothing of handshakes that failed.
    assert not (folder / "keys").exists()
    for word in ("Traceback", "SSL", "handshake"):
        assert word not in system.output


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def from_elsewhere():
    """An origin whose port `given` names."""
    async with Origin() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def given(tmp_path_factory, from_elsewhere):
    """One with the operator's own certificate, on loopback; its proxy listens everywhere."""
    folder = tmp_path_factory.mktemp("given")
    files = write_pair(folder, "control.example.com")
    options = ("--tls-cert", str(files[0]), "--tls-key", str(files[1]), "--workers", "1")
    # From elsewhere only ports that are named are reached.
    everywhere = (
        "--proxy-listen",
        "0.0.0.0:0",
        "--connect-port",
        str(from_elsewhere.port),
        *LOCALLY,
    )
    async with System(folder / "data", *options, *everywhere) as system:
        system.files = files
        yield system


@pytest_asyncio.fixture(loop_scope="module")
async def origin():
    async with Origin() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def tls_origin(authority):
    async with Origin(authority.server_context("localhost", "127.0.0.1")) as running:
        yield running


def port_of(url: str) -> int:
    return urlsplit(url).port


def own_addresses() -> list[str]:
    """Where others would reach this machine, as far as there is a way out of it."""
    found = []
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((elsewhere, 9))
                found.append(probe.getsockname()[0])
        except OSError:
            pass
    return found


async def peer(port: int, context: ssl.SSLContext, host: str, name: str | None = None) -> bytes:
    """The certificate that is shown; ssl.SSLError when it is not taken."""
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name or host)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return certificate


# The control server.


async def test_beyond_loopback_it_serves_tls_by_itself(everywhere):
    """When `serves_tls` said no for 0.0.0.0, endpoints.json said http://, and a request without TLS was answered."""
    assert everywhere.control_url.startswith("https://127.0.0.1:")
    assert everywhere.control_ca == everywhere.data_dir / "public" / "ca.pem"
    status, answer = await everywhere.api("GET", "/v1/mesh/agents")
    assert (status, answer["ok"]) == (200, True)
    assert (everywhere.data_dir / "ca" / "listener.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "this host's name", "its addresses"])
async def test_its_certificate_is_for_every_name_of_this_machine(everywhere, name):
    port, context = port_of(everywhere.control_url), trusting(everywhere.control_ca)
    for host in own_addresses() if name == "its addresses" else ["127.0.0.1"]:
        if ":" in host:
            continue  # 0.0.0.0 is IPv4 alone
        called = {"localhost": "localhost", "this host's name": socket.gethostname()}
        assert await peer(port, context, host, called.get(name))


@pytest.mark.parametrize(
    ("url", "options", "code", "words"),
    [
        ("https://localhost:{port}", (), 1, "nobody who is trusted here vouches for it"),
        ("https://localhost:{port}", ("--ca-file", "{other}"), 1, "nobody who is trusted"),
        ("https://localhost:{port}", ("--ca-file", "{ca}"), 0, ""),
        ("http://localhost:{port}", (), 1, "speaks TLS: write https:// instead of http://"),
        ("https://localhost:{proxy}", ("--ca-file", "{ca}"), 1, "does not answer"),
    ],
)
async def test_the_command_line_from_elsewhere(everywhere, tmp_path, url, options, code, words):
    """A server that is not verified is refused, in one sentence and without a second try in the clear."""
    places = {
        "port": port_of(everywhere.control_url),
        "proxy": port_of(everywhere.proxy_url),
        "ca": everywhere.ca_file,
        "other": ensure_ca(tmp_path / "other"),
    }
    env = {**CLEAN, "HALTWIRE_API_KEY": everywhere.key, "HALTWIRE_DATA_DIR": str(tmp_path / "none")}
    arguments = ["list", "--url", url, *options]
    done = await run(
        sys.executable, "-m", "haltwire_cli", *(a.format(**places) for a in arguments), env=env
    )
    assert done.code == code, done.err
    assert words in done.err or code == 1
    assert "Traceback" not in done.err
    assert done.err.count("\n") == (1 if code else 0)
    assert everywhere.key not in done.out + done.err


async def test_the_command_line_on_this_machine_needs_nothing(everywhere):
    done = await everywhere.cli("list", "--json")
    assert (done.code, done.json()["ok"]) == (0, True)


async def test_a_request_without_tls_gets_no_answer(everywhere):
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(everywhere.control_url))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        answer = await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        answer = b""
    writer.transport.abort()
    assert b"HTTP" not in answer


@pytest.mark.parametrize("listener", ["control", "proxy"])
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_an_older_tls_is_refused_at_both_ports(everywhere, listener, version):
    """With minimum_version lowered in `server_context` (and its ciphers to match), TLS 1.1 was agreed on."""
    context = trusting(everywhere.ca_file)
    with pytest.warns(DeprecationWarning, match=version):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")
    port = port_of(getattr(everywhere, f"{listener}_url"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await peer(port, context, "127.0.0.1")


async def test_insecure_is_plain_and_said_loudly(tmp_path):
    async with System(tmp_path / "data", *ANYWHERE, "--insecure", "--workers", "1") as system:
        assert system.control_url.startswith("http://127.0.0.1:")
        assert (await system.cli("list")).code == 0
    assert "INSECURE: 0.0.0.0:" in system.output
    assert "keys travel to it unencrypted" in system.output


@pytest.mark.parametrize(
    ("name", "certificate", "words"),
    [
        ("another key", {"other_key": True}, "is not the key of the certificate"),
        ("run out", {"days": (-30, -1)}, "ran out on"),
        ("not valid yet", {"days": (1, 30)}, "is not valid before"),
    ],
)
async def test_a_certificate_that_cannot_be_used_starts_nothing(tmp_path, name, certificate, words):
    """Without the call of `check` in up.py, the one that had run out was served until the test gave up."""
    files = write_pair(tmp_path, **certificate)
    options = ("--data-dir", str(tmp_path / "data"), *ANYWHERE, "--proxy-listen", "127.0.0.1:0")
    own = ("--tls-cert", str(files[0]), "--tls-key", str(files[1]))
    done = await run(sys.executable, "-m", "haltwire_cli", "up", *options, *own)
    assert (done.code, done.out) == (2, "")
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not (tmp_path / "data" / "endpoints.json").exists()


# The workers' link.


async def test_a_worker_shows_its_key_to_nobody_it_does_not_know(tmp_path):
    """It tries again and again, and not one byte inside the TLS. With CERT_NONE in `_client` its whole request, key and all, was read here."""
    files = write_pair(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    impostor = Impostor(context)
    listener = socket.create_server(("127.0.0.1", 0))
    instructions = {
        "proxy_id": "w-1",
        "control_url": f"https://127.0.0.1:{impostor.port}",
        "control_trust": ["ours", str(ensure_ca(tmp_path / "data"))],
        "listener_tls": None,
        "proxy_key": "hwk_" + "p" * 43,
        "data_dir": str(tmp_path / "data"),
        "tls": "tunnel",
        "tunnel_hosts": [],
        "upstream_ca": None,
        "own_addresses": [],
        "allow_to": [],
        "connect_ports": [],
        "limits": [],
        "beyond_loopback": False,
        "listen_fd": listener.fileno(),
        "stop_fd": 0,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "haltwire_cli.serve",
        "proxy",
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env=CLEAN,
    )
    process.stdin.write(json.dumps(instructions).encode() + b"\n")
    await soon(lambda: len(impostor.failed) >= 3)
    process.stdin.close()
    await process.communicate()
    listener.close()
    impostor.close()
    assert impostor.heard == b""


@pytest.mark.parametrize("which", ["everywhere", "given"])
async def test_kills_reach_the_workers_and_are_confirmed(
    everywhere, given, origin, from_elsewhere, which
):
    system, origin = {"everywhere": (everywhere, origin), "given": (given, from_elsewhere)}[which]
    agent = f"acme/link/{which}"
    url = urlsplit(await system.token(f"agent://{agent}"))
    reader, writer = await asyncio.open_connection("127.0.0.1", url.port)
    credentials = basic(url.username, url.password)
    writer.write(
        f"CONNECT {origin.host} HTTP/1.1\r\nProxy-Authorization: {credentials}\r\n\r\n".encode()
    )
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    done = await system.cli("kill", agent, "--json")
    receipt = done.json()
    assert (done.code, receipt["confirmed"]) == (0, True)
    assert {proxy["state"] for proxy in receipt["proxies"]} == {"applied"}
    assert sum(proxy["connections_cut"] for proxy in receipt["proxies"]) == 1
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(reader.read(), 5)
    writer.transport.abort()


async def test_agents_calls_are_relayed_over_it(everywhere):
    """haltwire.internal, asked through TLS to the proxy, relayed over TLS to the control server."""
    url = https(await everywhere.token("agent://acme/link/beats"))
    done = await run(
        *curl(everywhere, url), "-d", "{}", "http://haltwire.internal/v1/mesh/heartbeat"
    )
    assert json.loads(done.out)["agent_uri"] == "agent://acme/link/beats"


# The operator's own certificate.


async def test_an_operators_certificate_is_used_on_loopback_too(given):
    """Nobody on this machine can call it by its name: it is known by what it is."""
    assert given.control_url.startswith("https://127.0.0.1:")
    named = given.control_ca
    assert named == given.data_dir / "public" / "control.pem"
    shown = ssl.PEM_cert_to_DER_cert(given.files[0].read_text())
    for port in (port_of(given.control_url), port_of(given.proxy_url)):
        context = trusting(given.files[0])
        assert await peer(port, context, "127.0.0.1", "control.example.com") == shown
        with pytest.raises(ssl.SSLCertVerificationError):
            await peer(port, trusting(given.ca_file), "127.0.0.1")
    assert (await given.cli("list")).code == 0


async def test_our_own_certificate_is_renewed_while_it_runs(everywhere):
    """As `up` does it long before the old one runs out, or when this machine gets another address."""
    names = ["localhost", "127.0.0.1", "another.example"]
    issue_leaf(everywhere.data_dir, names, datetime.now(timezone.utc))
    context = trusting(everywhere.ca_file)
    for url in (everywhere.control_url, everywhere.proxy_url):
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(ssl.SSLCertVerificationError):
                    await peer(port_of(url), context, "127.0.0.1", "another.example")
                    break
                await asyncio.sleep(0.1)
    assert (await everywhere.cli("list")).code == 0


async def test_a_renewed_certificate_is_taken_while_it_runs(given):
    """And by a worker that has to connect anew. Without `Pins.follow` the worker of before went on, and a kill was not confirmed once its link had ended."""
    old = ssl.PEM_cert_to_DER_cert(given.files[0].read_text())
    write_pair(given.files[0].parent, "control.example.com")
    new = ssl.PEM_cert_to_DER_cert(given.files[0].read_text())
    assert old != new
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    for url in (given.control_url, given.proxy_url):
        async with asyncio.timeout(20):
            while await peer(port_of(url), anybody, "127.0.0.1") != new:
                await asyncio.sleep(0.1)
    assert (await given.cli("list")).code == 0
    children = Path(f"/proc/{given.process.pid}/task/{given.process.pid}/children").read_text()
    (control,) = [
        int(pid)
        for pid in children.split()
        if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"control\0")
    ]
    os.kill(control, signal.SIGKILL)  # every link ends, and begins anew with the new certificate
    async with asyncio.timeout(20):
        while (await given.cli("kill", "acme/renewed/x", "--wait", "5s")).code not in (0, 3):
            await asyncio.sleep(0.1)
    receipt = (await given.cli("kill", "acme/renewed/y", "--json")).json()
    assert [proxy["state"] for proxy in receipt["proxies"]] == ["applied"]


@pytest.mark.parametrize(
    ("host", "named"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("x y", "127.0.0.1")],
)
async def test_a_proxy_that_listens_everywhere_is_named_as_its_caller_named_us(given, host, named):
    """0.0.0.0 is no address to go to, and loopback none for who calls from elsewhere."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{given.control_url}/v1/tokens",
            json={"selector": "agent://acme/named/x"},
            headers={"Authorization": f"Bearer {given.key}", "Host": f"{host}:1"},
            ssl=given.context(),
        ) as answer,
    ):
        made = urlsplit((await answer.json())["proxy_url"])
    assert (made.scheme, made.hostname, made.port) == ("http", named, port_of(given.proxy_url))


# TLS to the proxy.


def https(proxy_url: str) -> str:
    return proxy_url.replace("http://", "https://")


def curl(system: System, proxy_url: str) -> list[str]:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    ca = str(system.ca_file)
    return ["curl", "-sS", "--max-time", "20", "--proxy", proxy_url, "--proxy-cacert", ca]


REQUESTS = """
import sys, requests
url, proxy, bundle = sys.argv[1:]
session = requests.Session()
session.trust_env = False
answer = session.get(url, proxies={"http": proxy, "https": proxy}, verify=bundle)
print(answer.status_code, answer.text)
"""
HTTPX = """
import ssl, sys, httpx
url, proxy, bundle = sys.argv[1:]
context = ssl.create_default_context(cafile=bundle)
own = {"ssl_context": context} if proxy.startswith("https") else {}
with httpx.Client(proxy=httpx.Proxy(proxy, **own), verify=context) as client:
    answer = client.get(url)
print(answer.status_code, answer.text)
"""


@pytest.mark.parametrize("way", ["plain", "tunnel", "intercept"])
@pytest.mark.parametrize("client", ["curl", "requests", "httpx"])
async def test_real_clients_use_it(
    everywhere, authority, origin, tls_origin, tmp_path, client, way
):
    """The same port, the same token, https:// instead of http:// in the proxy's URL."""
    agent = f"acme/{client}/{way}"
    tls = "intercept" if way == "intercept" else "tunnel"
    proxy = await everywhere.token(f"agent://{agent}", tls)
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(everywhere.ca_file.read_text() + authority.ca_file.read_text())
    asked = origin if way == "plain" else tls_origin
    url = f"{asked.url}/echo"
    for address in (https(proxy), proxy):
        if client == "curl":
            command = [*curl(everywhere, address), "--cacert", str(bundle), url, "-w", "\n%{http_code}"]  # fmt: skip
        else:
            script = REQUESTS if client == "requests" else HTTPX
            command = [sys.executable, "-c", script, url, address, str(bundle)]
        done = await run(*command)
        assert done.code == 0, done.err
        assert "200" in done.out
    assert len(asked.requests) == 2
    for _, _, headers in asked.requests:
        assert not [name for name in headers if name.startswith(("proxy-", "x-agent"))]
    assert (await everywhere.cli("kill", agent)).code == 0
    done = await run(*command[:-1], str(bundle)) if client != "curl" else await run(*command)
    assert "200" not in done.out.split()


async def tunnelled(system: System, agent: str, target: str) -> TlsWire:
    url = urlsplit(await system.token(agent))
    wire = await TlsWire.open_tls(url.port, trusting(system.ca_file))
    credentials = f"Proxy-Authorization: {basic(url.username, url.password)}"
    answer = await wire.request("CONNECT", target, f"Host: {target}", credentials)
    assert answer.status == 200
    return wire


async def test_a_kill_cuts_a_stream_over_it(everywhere, origin):
    """The reset is the socket's own, at both sides, before the receipt is answered."""
    wire = await tunnelled(everywhere, "agent://acme/stream/cut", origin.host)
    await wire.request("GET", "/events", f"Host: {origin.host}", read=False)
    await wire.reader.readexactly(1000)
    async with Operator(everywhere) as operator:
        receipt = await operator.kill("agent://acme/stream/cut")
        assert receipt.cut == 1
    await soon(lambda: wire.finished)
    assert wire.reset
    assert not wire.notified
    (seen,) = origin.connections
    await asyncio.wait_for(seen.ended.wait(), 5)


async def test_hold_and_resume_keep_every_byte_in_its_place(everywhere):
    """Both directions stand still in the middle of megabytes."""

    async def echo(reader, writer):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
        writer.close()

    server, port = await serving(echo)
    wire = await tunnelled(everywhere, "agent://acme/stream/held", f"127.0.0.1:{port}")
    got = bytearray()

    async def take(size: int) -> None:
        while len(got) < size:
            got.extend(await wire.reader.read(65536))

    sent = 0

    async def give() -> None:
        nonlocal sent
        while sent < len(NUMBERS):
            await wire.send(NUMBERS[sent : sent + 50_000])
            sent += 50_000
            while sent - len(got) > 400_000:
                await asyncio.sleep(0.001)
        wire.writer.write_eof()

    giving = asyncio.get_running_loop().create_task(give())
    await take(100_000)
    async with Operator(everywhere) as operator:
        for _ in range(3):
            await operator.kill("agent://acme/stream/held", mode="hold")
            while True:  # what was on its way when it was frozen
                try:
                    got.extend(await asyncio.wait_for(wire.reader.read(65536), 0.2))
                except TimeoutError:
                    break
            assert len(got) < sent < len(NUMBERS)
            await operator.resume("agent://acme/stream/held")
            await take(min(len(got) + 200_000, len(NUMBERS)))
        await asyncio.wait_for(take(len(NUMBERS)), 30)
    await giving
    assert bytes(got) == NUMBERS
    assert await asyncio.wait_for(wire.reader.read(), 5) == b""
    assert wire.notified
    server.close()


async def test_handshakes_that_fail_cost_the_others_nothing(everywhere, origin):
    """And no line in the log: the fixture looks when the program has ended."""
    opened = []
    for _ in range(100):
        reader, writer = await asyncio.open_connection("127.0.0.1", everywhere.port)
        writer.write(b"\x16\x03\x01\x40\x00" + b"x" * 100 if len(opened) % 2 else b"\x16garbage")
        opened.append((reader, writer))
    wire = await tunnelled(everywhere, "agent://acme/stream/fine", origin.host)
    assert (await wire.request("GET", "/echo", f"Host: {origin.host}")).status == 200
    for reader, _ in opened[::2]:
        assert b"HTTP" not in await asyncio.wait_for(reader.read(), 5)
    for _, writer in opened:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
