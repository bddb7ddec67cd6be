"""The control server on another machine is not reached through the proxy either, by none of its names and addresses.

Rows are named as in test_destinations.py: B09, the control server.

Protections that were taken out to see these tests fail, and what was seen:
- the control server in `Rules._is_own`: every row but those of its own name failed.
- what it announces in `ControlHost.is_at`: so were private.test, mixed.test and its two private addresses.
"""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from support import netlab
from support.client import Wire
from support.destinations import ITSELF, Agent, refused
from support.netlab import CONTROL_PORT, ORIGIN_OTHER, ORIGIN_PRIVATE, ORIGIN_PUBLIC
from support.splitlab import CONTROL_NAME, SplitLab

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(why := netlab.missing()), reason=why or ""),
]
OPENED = ("10.0.0.0/8", "192.168.0.0/16")


class Elsewhere(Agent):
    """An agent on another machine."""

    def __init__(self, lab: SplitLab, label: str, secret: str) -> None:
        super().__init__(0, label, secret)
        self._lab = lab

    async def open(self) -> Wire:
        return Wire(*await self._lab.connect())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory):
    """All of the control server's networks are opened, and its port."""
    opened = [word for cidr in OPENED for word in ("--allow-to", cidr)]
    options = (*opened, "--connect-port", str(CONTROL_PORT))
    async with SplitLab(tmp_path_factory.mktemp("lab"), *options) as running:
        running.names.zones |= {
            "alias.test": [ORIGIN_PUBLIC],
            "private.test": [ORIGIN_PRIVATE],
            "mixed.test": ["11.0.0.77", ORIGIN_OTHER],
        }
        listener = running.outside.listener(ORIGIN_PRIVATE, 9200)

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, sock=listener)
        yield running
        server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["tunnel", "intercept"])
async def agent(request, lab):
    name = f"mailer-{request.param}"
    agent = Elsewhere(
        lab, f"acme.prod.{name}", await lab.secret(f"acme/prod/{name}", request.param)
    )
    async with asyncio.timeout(30):
        while (await agent.get(f"http://{ORIGIN_PRIVATE}:9200/"))[0] != 200:
            await asyncio.sleep(0.05)
    return agent


THE_CONTROL_SERVER = [
    CONTROL_NAME,
    "CONTROL.Test.",
    "alias.test",
    "private.test",
    "mixed.test",
    ORIGIN_PUBLIC,
    ORIGIN_PRIVATE,
    ORIGIN_OTHER,
    "11.2",
    "184549378",
    "0x0b000002",
    "013.0.0.2",
    "11.0.0.2.",
    "[::ffff:11.0.0.2]",
    "[::FFFF:0b00:2]",
    "[::11.0.0.2]",
    "[64:ff9b::11.0.0.2]",
    "[2002:b00:2::1]",
    "[::ffff:10.9.0.2]",
]


@pytest.mark.parametrize("host", THE_CONTROL_SERVER)
async def test_b09_another_machines_control_server_is_not_reached_in_any_spelling(agent, host):
    authority = f"{host}:{CONTROL_PORT}"
    refused(await agent.get(f"http://{authority}/v1/kills"), "destination_denied", ITSELF)
    wire = await agent.open()
    answer = await wire.request("CONNECT", authority, agent.header)
    if answer.status == 200:
        answer = await wire.request("GET", "/v1/kills", f"Host: {authority}")
    refused((answer.status, answer.json()), "destination_denied", ITSELF)
    wire.close()


async def test_other_ports_of_its_machine_are_judged_as_ever(agent):
    status, error = await agent.get(f"http://{ORIGIN_PRIVATE}:9200/")
    assert (status, error) == (200, {})


async def test_the_agents_own_calls_are_relayed_to_it(agent):
    wire = await agent.open()
    url = "http://haltwire.internal/v1/mesh/heartbeat"
    answer = await wire.request(
        "POST", url, "Host: haltwire.internal", agent.header, body=b'{"metadata": {"batch": 1}}'
    )
    assert (answer.status, answer.json()["ok"]) == (200, True)
