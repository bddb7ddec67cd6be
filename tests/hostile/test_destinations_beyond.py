"""Where a hostile agent on another machine gets through a proxy that listens beyond loopback: in network namespaces.

Rows are named as in test_destinations.py.

Protections that were taken out to see these tests fail, and what was seen:
- `Rules.check` judging only the first address: the mixed answer of S04 was dialled.
- the ports in `check_name`: all of B16 was answered 200, on a later plain request too.
- the proxy's own host in `Rules.check`: a service behind the host's firewall answered 200.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import pytest_asyncio
from support import netlab
from support.client import Wire
from support.destinations import ITSELF, METADATA_SERVICE, Agent, refused
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

pytestmark = pytest.mark.asyncio(loop_scope="module")

needs_namespaces = pytest.mark.skipif(bool(why := netlab.missing()), reason=why or "")
OPENED = ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")


class Elsewhere(Agent):
    """An agent on another machine."""

    def __init__(self, lab: Lab, label: str, secret: str) -> None:
        super().__init__(0, label, secret)
        self._lab = lab

    async def open(self) -> Wire:
        return Wire(*await self._lab.connect())


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
