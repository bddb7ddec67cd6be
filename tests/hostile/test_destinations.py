"""Where a hostile agent gets through a real `haltwire up`: nowhere that is ours, a cloud's, or this host's own.

Rows are named after the list of threats: S01 ranges, S02 spellings, S03 rebinding, S04 mixed answers,
S05 aliases, S06 redirects, S07 loops, S08 two proxies, S11 an opened range, B09 the control server, B16 ports.

Protections that were taken out to see these tests fail, and what was seen:
- the own listeners in `Rules.check`: every spelling of S07 and B09 was answered 200, by the control server too.
- `is_local` in `_is_own`: 127.8.8.8, 0.0.0.0, [::1] and every other address of this host were dialled.
- `Rules.check` judging only the first address: the mixed answer of S04 was dialled.
- the ports in `check_name`: all of B16 was answered 200, on a later plain request too.
- the proxy's own host in `Rules.check`: a service behind the host's firewall answered 200.
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
from support import netlab
from support.client import Wire, serving
from support.netlab import (
    CONTROL_PORT,
    METADATA,
    ORIGIN_OTHER,
    ORIGIN_PRIVATE,
    ORIGIN_PUBLIC,
    PROXY_PORT,
    PROXY_PRIVATE,
    PROXY_PUBLIC,
    Lab,
)
from support.system import System
from support.world import basic

pytestmark = pytest.mark.asyncio(loop_scope="module")

ITSELF = "is haltwire itself"
METADATA_SERVICE = "is a cloud's metadata service"


class Agent:
    """An agent's credentials at a proxy on loopback."""

    def __init__(self, port: int, label: str, secret: str) -> None:
        self.port = port
        self.header = f"Proxy-Authorization: {basic(label, secret)}"

    @classmethod
    async def of(cls, system: System, name: str, tls: str = "tunnel") -> Agent:
        secret = urlsplit(await system.token(f"agent://acme/prod/{name}", tls)).password
        return cls(system.port, f"acme.prod.{name}", secret)

    async def open(self) -> Wire:
        return await Wire.open(self.port)

    async def connect(self, target: str) -> tuple[int, dict]:
        """(status, error) of a CONNECT; the connection stays until the end of the test."""
        return await self._ask(f"CONNECT {target}")

    async def get(self, url: str) -> tuple[int, dict]:
        return await self._ask(f"GET {url}")

    async def _ask(self, what: str) -> tuple[int, dict]:
        wire = await self.open()
        method, target = what.split(" ", 1)
        host = (
            f"Host: {target.partition('://')[2].partition('/')[0]}\r\n" if method == "GET" else ""
        )
        lines = f"{method} {target} HTTP/1.1\r\n{host}{self.header}\r\n\r\n"
        await wire.send(lines.encode())
        answer = await wire.answer(head=method == "CONNECT")
        wire.close()
        return answer.status, json.loads(answer.body) if answer.body[:1] == b"{" else {}


class Elsewhere(Agent):
    """An agent on another machine."""

    def __init__(self, lab: Lab, label: str, secret: str) -> None:
        super().__init__(0, label, secret)
        self._lab = lab

    async def open(self) -> Wire:
        return Wire(*await self._lab.connect())


def refused(answer, code, words):
    status, error = answer
    assert (status, error.get("error")) == (
        {"destination_denied": 403, "malformed_request": 400}[code],
        code,
    ), answer
    assert words in error["message"]


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


# From here on the proxy listens beyond loopback, and agents are elsewhere.

needs_namespaces = pytest.mark.skipif(bool(why := netlab.missing()), reason=why or "")
OPENED = ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    opened = [word for cidr in OPENED for word in ("--allow-to", cidr)]
    async with Lab(tmp_path_factory.mktemp("lab"), *opened, "--connect-port", "8443") as running:
        servers = []
        for address in (ORIGIN_PUBLIC, ORIGIN_PRIVATE, ORIGIN_OTHER, METADATA):
            for port in (22, 25, 53, 80, 443, 8443, 9200, 9443):
                sock = running.outside.listener(address, port)
                running.reached = []
                servers.append(await asyncio.start_server(_noting(running, address), sock=sock))
        behind = running.gateway.listener("0.0.0.0", 9090)
        servers.append(await asyncio.start_server(_noting(running, "behind"), sock=behind))
        yield running
        for server in servers:
            server.close()
            server.abort_clients()


def _noting(lab, name):
    async def serve(reader, writer):
        lab.reached.append(name)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    return serve


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visitor(lab):
    return Elsewhere(lab, "acme.prod.visitor", await lab.secret("acme/prod/visitor"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def read_visitor(lab):
    secret = await lab.secret("acme/prod/read", "intercept")
    return Elsewhere(lab, "acme.prod.read", secret)


RANGES = {
    "0.0.0.1": "this host",
    "100.64.0.1": "shared address space",
    "172.16.0.1": "private",
    "192.168.9.2": "private",
    "192.0.0.8": "protocol assignments",
    "192.0.2.1": "documentation",
    "192.88.99.1": "6to4",
    "198.18.0.1": "benchmarking",
    "198.51.100.1": "documentation",
    "203.0.113.1": "documentation",
    "224.0.0.1": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "reserved",
    "3232237826": "private",  # 192.168.9.2
    "[::]": "this host",
    "[::1]": "loopback",
    "[::ffff:192.168.9.2]": "IPv4-mapped",
    "[::ffff:11.0.0.2]": "IPv4-mapped",
    "[::ffff:0:11.0.0.2]": "IPv4-translated",
    "[64:ff9b::11.0.0.2]": "NAT64",
    "[64:ff9b::192.168.9.2]": "NAT64",
    "[100::1]": "discard-only",
    "[2001::1]": "protocol assignments",
    "[2001:db8::1]": "documentation",
    "[2002:b00:2::]": "6to4",
    "[3fff::1]": "documentation",
    "[5f00::1]": "reserved",
    "[fd00::1]": "private",
    "[fe80::1]": "link-local",
    "[fec0::1]": "site-local",
    "[ff02::1]": "multicast",
}


@needs_namespaces
@pytest.mark.parametrize("host", RANGES)
async def test_s01_ranges_are_not_reached_from_beyond(visitor, host):
    words = f"is in a range not reached from here: {RANGES[host]}"
    refused(await visitor.connect(f"{host}:443"), "destination_denied", words)
    refused(await visitor.get(f"http://{host}/"), "destination_denied", words)


PORTS = {
    "22": 403,
    "25": 403,
    "53": 403,
    "8081": 403,
    "9200": 403,
    "9443": 403,
    "80": 200,
    "443": 200,
    "8443": 200,
}


@needs_namespaces
@pytest.mark.parametrize("port", PORTS)
async def test_b16_connect_reaches_listed_ports_only(lab, visitor, read_visitor, port):
    for agent in (visitor, read_visitor):
        lab.reached.clear()
        answer = await agent.connect(f"{ORIGIN_PUBLIC}:{port}")
        if PORTS[port] == 200:
            assert answer[0] == 200
        else:
            refused(answer, "destination_denied", f"haltwire runs with --connect-port {port}")
            assert lab.reached == []


@needs_namespaces
@pytest.mark.parametrize(("port", "status"), [(22, 403), (25, 403), (80, 200), (9200, 200)])
async def test_b16_plain_requests_reach_no_other_well_known_port(visitor, port, status):
    answer = await visitor.get(f"http://{ORIGIN_PUBLIC}:{port}/")
    assert answer[0] == status
    if status == 403:
        refused(answer, "destination_denied", f"--connect-port {port}")


@needs_namespaces
async def test_b16_a_later_plain_request_is_judged_too(visitor):
    wire = await visitor.open()
    target = f"http://{ORIGIN_PUBLIC}"
    first = await wire.request("GET", f"{target}/", f"Host: {ORIGIN_PUBLIC}", visitor.header)
    assert first.status == 200
    answer = await wire.request("GET", f"{target}:25/", f"Host: {ORIGIN_PUBLIC}:25", visitor.header)
    assert (answer.status, answer.json()["error"]) == (403, "destination_denied")


async def test_b16_on_loopback_all_ports_are_reached(agent):
    server, port = await serving(lambda reader, writer: writer.close())
    assert (await agent.connect(f"127.0.0.1:{port}"))[0] == 200
    server.close()
    server.abort_clients()


@needs_namespaces
async def test_b09_the_hosts_own_services_are_not_reached_by_its_public_address(lab, visitor):
    """Its firewall looks outwards; the proxy would be a way round it."""
    lab.reached.clear()
    answer = await visitor.get(f"http://{PROXY_PUBLIC}:9090/")
    refused(answer, "destination_denied", "is the proxy's own host")
    refused(await visitor.connect(f"{PROXY_PUBLIC}:443"), "destination_denied", "own host")
    assert lab.reached == []


S11 = {
    "an opened range": (f"{ORIGIN_PRIVATE}:80", 200, None),
    "one that is not": (f"{ORIGIN_OTHER}:80", 403, "private"),
    "metadata in an opened range": (f"{METADATA}:80", 403, METADATA_SERVICE),
    "the proxy": (f"127.0.0.1:{PROXY_PORT}", 403, ITSELF),
    "the control server": (f"127.0.0.1:{CONTROL_PORT}", 403, ITSELF),
    "the control server as a number": (f"2130706433:{CONTROL_PORT}", 403, ITSELF),
    "the control server at another address": (f"{PROXY_PRIVATE}:{CONTROL_PORT}", 403, ITSELF),
    "the control server at a public address": (f"{PROXY_PUBLIC}:{CONTROL_PORT}", 403, ITSELF),
    "the proxy at another address": (f"{PROXY_PRIVATE}:{PROXY_PORT}", 403, ITSELF),
    "the proxy at link-local": (f"169.254.0.1:{PROXY_PORT}", 403, ITSELF),
    "the proxy at any": (f"0.0.0.0:{PROXY_PORT}", 403, ITSELF),
    "the control server by a name": (f"ours.test:{CONTROL_PORT}", 403, ITSELF),
    "the proxy by a name": (f"public.ours.test:{PROXY_PORT}", 403, ITSELF),
}


@needs_namespaces
@pytest.mark.parametrize("name", S11)
async def test_s11_an_opened_range_never_covers_us_nor_metadata(lab, visitor, name):
    lab.names.zones.update({"ours.test": ["127.0.0.1"], "public.ours.test": [PROXY_PUBLIC]})
    target, status, words = S11[name]
    answer = await visitor.get(f"http://{target}/v1/kills")
    assert answer[0] == status, answer
    if words:
        refused(answer, "destination_denied", words)


PUBLIC, INNER = ORIGIN_PUBLIC, ORIGIN_OTHER
NAMES = {
    "S04 public and private": ([PUBLIC, INNER], "private"),
    "S04 private and public": ([INNER, PUBLIC], "private"),
    "S04 public, and loopback over IPv6": ([PUBLIC, "::1"], "loopback"),
    "S04 public, and metadata": ([PUBLIC, METADATA], METADATA_SERVICE),
    "S05 an internal one behind a public name": ([INNER], "private"),
    "metadata by its name": ([METADATA], METADATA_SERVICE),
}


@needs_namespaces
@pytest.mark.parametrize("name", NAMES)
async def test_s04_s05_one_denied_address_of_a_name_denies_it(lab, visitor, name):
    answers, words = NAMES[name]
    lab.names.zones["mixed.test"] = answers
    lab.reached.clear()
    refused(await visitor.connect("mixed.test:443"), "destination_denied", words)
    refused(await visitor.get("http://mixed.test/"), "destination_denied", words)
    assert lab.reached == []


@needs_namespaces
@pytest.mark.parametrize("then", [INNER, METADATA, "127.0.0.1", PROXY_PUBLIC])
async def test_s03_a_name_is_asked_once_for_what_is_judged_and_dialled(lab, visitor, then):
    """Public when it is first asked, something else ever after."""
    name = f"rebind-{then}.test"
    lab.names.zones[name] = [[PUBLIC], [then]]
    lab.reached.clear()
    port = PROXY_PORT if then in ("127.0.0.1", PROXY_PUBLIC) else 80
    if port == 80:
        assert (await visitor.connect(f"{name}:80"))[0] == 200
    else:
        assert (await visitor.get(f"http://{name}:9200/"))[0] == 200
    async with asyncio.timeout(5):
        while not lab.reached:  # our 200 may be quicker than the origin's word
            await asyncio.sleep(0.01)
    assert lab.names.asked[name] == 1
    assert lab.reached == [PUBLIC]
    status, error = await visitor.get(f"http://{name}:{port}/")
    assert (status, error["error"]) == (403, "destination_denied")
    assert lab.names.asked[name] == 2
    assert lab.reached == [PUBLIC]
