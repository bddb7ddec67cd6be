"""Where a hostile agent gets through a real `haltwire up`: nowhere that is ours, a cloud's, or this host's own.

Rows are named after the list of threats: S01 ranges, S02 spellings, S03 rebinding, S04 mixed answers,
S05 aliases, S06 redirects, S07 loops, S08 two proxies, S11 an opened range, B09 the control server, B16 ports.

Protections that were taken out to see these tests fail, and what was seen:
- the own listeners in `Rules.check`: every spelling of S07 and B09 was answered 200, by the control server too.
- `is_local` in `_is_own`: 127.8.8.8, 0.0.0.0, [::1] and every other address of this host were dialled.
- `NESTED_CONNECT` in clienthello.py: S08 went round, 200 at each of the two proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import urllib.error
import urllib.request
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from support.client import serving
from support.destinations import ITSELF, METADATA_SERVICE, Agent, refused
from support.netlab import METADATA
from support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")


def own_addresses() -> list[str]:
    """Every address of this host, as a URL has it."""
    found = []
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        address = IPv6Address(int(line.split()[0], 16))
        found.append(f"[{address}]")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.77", 9))
            found.append(sock.getsockname()[0])
        except OSError:
            pass
    return found


def descriptors(system: System) -> int:
    """How many files the processes of one `up` have open."""
    pid = system.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(len(list(Path(f"/proc/{p}/fd").iterdir())) for p in children)


async def settled(system: System, at_most: int) -> None:
    """Wait until no more files than this are open."""
    async with asyncio.timeout(5):
        while descriptors(system) > at_most:
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory):
    async with System(tmp_path_factory.mktemp("up"), "--workers", "1") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(system):
    return await Agent.of(system, "mailer")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reader(system):
    return await Agent.of(system, "reader", "intercept")


US = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0X7F.0x1",
    "017700000001",
    "0177.0.0.01",
    "127.0.0.1.",
    "127.8.8.8",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "LocalHost.",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7f00:1]",
    "[::127.0.0.1]",
    "[::ffff:0:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::127.0.0.1]",
    "[2002:7f00:1::]",
    *own_addresses(),
]


@pytest.mark.parametrize("host", US)
async def test_s07_b09_we_are_not_reached_in_any_spelling(system, agent, reader, host):
    """Proxy and control server, by CONNECT and by URL, unread and read inside."""
    before = descriptors(system)
    for port in (system.port, urlsplit(system.control_url).port):
        refused(await agent.connect(f"{host}:{port}"), "destination_denied", ITSELF)
        refused(await agent.get(f"http://{host}:{port}/v1/kills"), "destination_denied", ITSELF)
        refused(await reader.get(f"http://{host}:{port}/v1/kills"), "destination_denied", ITSELF)
        status, error = await inside(reader, f"{host}:{port}")
        assert (status, error["error"]) == (403, "destination_denied")
    await settled(system, before + 4)


async def inside(agent: Agent, target: str) -> tuple[int, dict]:
    """What a request within a CONNECT that is read gets, or the CONNECT itself."""
    wire = await agent.open()
    answer = await wire.request("CONNECT", target, agent.header)
    if answer.status == 200:
        answer = await wire.request("GET", "/v1/kills", f"Host: {target}")
    wire.close()
    return answer.status, answer.json()


async def test_s07_b09_nor_by_the_name_of_this_host(system, agent):
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        pytest.skip(f"{name}, this host's name, resolves to nothing here")
    for spelling in (name, name.upper(), name + "."):
        for port in (system.port, urlsplit(system.control_url).port):
            refused(await agent.connect(f"{spelling}:{port}"), "destination_denied", ITSELF)


async def test_b09_the_agents_own_api_is_no_way_to_the_operators(system, agent):
    port = urlsplit(system.control_url).port
    for host in ("haltwire.internal", "HALTWIRE.internal."):
        answer = await agent.connect(f"{host}:{port}")
        refused(answer, "destination_denied", "Use http://haltwire.internal/")
        answer = await agent.get(f"http://{host}:{port}/v1/mesh/kills")
        refused(answer, "destination_denied", "Use http://haltwire.internal/")
    for path in ("/v1/mesh/kills", "/v1/tokens", "//v1/tokens", "/v1/mesh/../tokens", "/metrics"):
        status, _ = await agent.get(f"http://haltwire.internal{path}")
        assert status == 404, path


MALFORMED = [
    "\uff11\uff12\uff17.0.0.1:80",
    "127\u30020\u30020\u30021:80",
    "[::1%25lo]:80",
    "[::1%lo]:80",
    "evil.test\0.good.test:80",
    "evil.test%00.good.test:80",
    "[[::1]]:80",
    "[127.0.0.1]:80",
    "user@127.0.0.1:80",
    "127.0.0.1\\@good.test:80",
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:",
    "127.0.0.1:080",
    "127.0.0.1:80:80",
    "..:80",
    "::1:80",
]


@pytest.mark.parametrize("target", MALFORMED)
async def test_s02_what_two_readers_could_read_differently_is_refused(agent, target):
    status, error = await agent.connect(target)
    assert (status, error["error"]) == (400, "malformed_request")
    status, error = await agent.get(f"http://{target}/")
    assert (status, error["error"]) == (400, "malformed_request")


CLOUDS = [
    "169.254.169.254",
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.169.254.",
    "[::ffff:169.254.169.254]",
    "[::a9fe:a9fe]",
    "[64:ff9b::169.254.169.254]",
    "[2002:a9fe:a9fe::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "[fd00:c1::a9fe:a9fe]",
    "[fd00:a9fe:a9fe::1]",
    "[fd00:42::42]",
    "[fe80::a9fe:a9fe]",
    "169.254.170.2",
    "169.254.42.42",
    "169.254.0.23",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
]


@pytest.mark.parametrize("host", CLOUDS)
async def test_s01_metadata_is_not_reached_from_loopback_either(agent, host):
    refused(await agent.connect(f"{host}:80"), "destination_denied", METADATA_SERVICE)
    url = f"http://{host}/latest/meta-data/iam/"
    refused(await agent.get(url), "destination_denied", METADATA_SERVICE)


@pytest.mark.parametrize("location", [f"http://{METADATA}/latest/", "http://0xa9fea9fe/"])
async def test_s06_a_redirect_to_metadata_is_judged_anew(system, location):
    """The proxy follows nothing; the client's next request is one like any other."""

    async def redirect(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n".encode())
        writer.close()

    server, port = await serving(redirect)
    proxy = await system.token("agent://acme/prod/follower")

    def follow():
        handler = urllib.request.ProxyHandler({"http": proxy})
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.build_opener(handler).open(f"http://127.0.0.1:{port}/", timeout=5)
        with raised.value as error:
            return error.code, json.load(error)

    refused(await asyncio.to_thread(follow), "destination_denied", METADATA_SERVICE)
    server.close()


async def test_s08_two_proxies_that_lead_to_each_other(system, agent, tmp_path):
    """Neither takes part in a round: no credentials go up, and no CONNECT within a tunnel."""
    async with System(tmp_path, "--workers", "1") as other:
        there = await Agent.of(other, "mailer")
        before = descriptors(system), descriptors(other)
        wires = []
        for _ in range(5):
            status, error = await agent.get(f"http://127.0.0.1:{other.port}/")
            assert (status, error["error"]) == (407, "proxy_credentials_required")
            wire = await agent.open()
            wires.append(wire)
            target = f"127.0.0.1:{other.port}"
            assert (await wire.request("CONNECT", target, agent.header)).status == 200
            answer = await wire.request("CONNECT", f"127.0.0.1:{system.port}", there.header)
            assert (answer.status, answer.json()["error"]) == (400, "malformed_request")
            assert "CONNECT inside" in answer.json()["message"]
        await settled(system, before[0] + 4)
        await settled(other, before[1] + 4)


async def test_s08_a_forwarder_that_leads_back_to_us(system, agent, reader):
    """Its address is not ours, so it is dialled once; there it ends, read inside or not."""

    async def forward(reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", system.port)

        async def pump(source, sink):
            with contextlib.suppress(ConnectionError):
                while chunk := await source.read(65536):
                    sink.write(chunk)
            sink.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, upstream_writer))
            group.create_task(pump(upstream_reader, writer))

    server, port = await serving(forward)
    before = descriptors(system)
    status, error = await agent.get(f"http://127.0.0.1:{port}/")
    assert (status, error["error"]) == (407, "proxy_credentials_required")
    for one in (agent, reader):
        wire = await one.open()
        assert (await wire.request("CONNECT", f"127.0.0.1:{port}", one.header)).status == 200
        answer = await wire.request("CONNECT", f"127.0.0.1:{port}", one.header)
        assert answer.status == 400
    await settled(system, before + 4)
    server.close()


async def test_b16_on_loopback_all_ports_are_reached(agent):
    server, port = await serving(lambda reader, writer: writer.close())
    assert (await agent.connect(f"127.0.0.1:{port}"))[0] == 200
    server.close()
    server.abort_clients()
