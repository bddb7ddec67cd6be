"""Hold: everything stops where it stands, waits, and goes on as if nothing had been.

`HALTWIRE_TEST_HELD_S=60` holds as long as the acceptance of this feature asks for.
"""

import asyncio
import contextlib
import os
import ssl

import aiohttp
import pytest
from support.operator import Operator
from support.system import System
from support.theatre import REQUEST_PIECES, Agent, Theatre, digest

HELD_S = float(os.environ.get("HALTWIRE_TEST_HELD_S", "3"))
STREAMS, REQUESTS = 50, 200
AGENT = "agent://acme/prod/mailer"


@pytest.fixture
async def held(tmp_path, authority):
    options = ("--workers", "2", "--upstream-ca", str(authority.ca_file))
    async with System(tmp_path / "data", *options) as running:
        yield running


@pytest.mark.parametrize("tls", ["plain", "tunnel", "intercept"])
async def test_streams_and_requests_are_held_and_go_on_byte_for_byte(held, authority, tls):
    context = None if tls == "plain" else authority.server_context("localhost")
    proxy = await held.token(AGENT, None if tls == "plain" else tls)
    trusted = held.ca_file if tls == "intercept" else authority.ca_file
    connector = aiohttp.TCPConnector(
        limit=0, ssl=True if tls == "plain" else ssl.create_default_context(cafile=str(trusted))
    )
    timeout = aiohttp.ClientTimeout(total=HELD_S + 100)
    async with (
        Theatre(context) as origin,
        Operator(held) as operator,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as tasks,
    ):
        agent = Agent(session, origin.url, proxy)
        kinds = (agent.download, agent.upload, agent.talk)
        moved = [asyncio.Event() for _ in range(STREAMS)]
        streams = [tasks.create_task(kinds[n % 3](n, began)) for n, began in enumerate(moved)]
        for began in moved:
            await asyncio.wait_for(began.wait(), 30)
        receipt = (await operator.kill(AGENT, mode="hold")).body
        assert receipt["halted_at"] is not None
        assert sum(row["connections_held"] for row in receipt["instances"]) == STREAMS
        assert sum(proxy["connections_cut"] for proxy in receipt["proxies"]) == 0
        requests = [tasks.create_task(agent.request(n)) for n in range(REQUESTS)]
        await held_connections(operator, receipt["kill_id"], STREAMS + REQUESTS)
        before = origin.requests, origin.bytes_in
        await asyncio.sleep(HELD_S)
        assert (origin.requests, origin.bytes_in) == before
        assert not any(task.done() for task in (*streams, *requests))
        beat = await operator.call("POST", "/v1/mesh/heartbeat", {"agent_uri": AGENT})
        assert (beat["killed"], beat["held"]) == (False, True)
        resumed = await operator.resume(AGENT)
        assert resumed["lifted"] == [receipt["kill_id"]]
        for number, task in enumerate(streams):
            assert await task == digest(number), f"stream {number}"
        for number, task in enumerate(requests):
            assert await task == digest(number, REQUEST_PIECES), f"request {number}"
        assert origin.requests == STREAMS + REQUESTS


async def held_connections(operator: Operator, kill_id: str, count: int) -> None:
    """Until the kill's own receipt says that so many are held."""
    async with asyncio.timeout(30):
        while True:
            told = await operator.call("GET", f"/v1/mesh/kills/{kill_id}")
            rows = told["receipt"]["instances"]
            if sum(row["connections_held"] or 0 for row in rows) == count:
                return
            await asyncio.sleep(0.1)


async def test_a_hold_becomes_a_cut_at_its_limit(held, origin):
    proxy = await held.token(AGENT)
    async with Operator(held) as operator, aiohttp.ClientSession() as session:
        await operator.kill(AGENT, mode="hold", hold_limit_s=1.0)
        # The waiting one is cut; this client may ask once more by itself, and is then refused.
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"http://{origin.host}/", proxy=proxy) as answer:
                assert answer.status == 403
        async with session.get(f"http://{origin.host}/", proxy=proxy) as answer:
            assert answer.status == 403
        assert not origin.connections
        async with asyncio.timeout(10):
            while True:
                (order,) = (await operator.call("GET", "/v1/mesh/kills"))["kills"]
                assert order["mode"] == "cut"
                if order["confirmed"]:
                    break
                await asyncio.sleep(0.02)


async def test_an_order_is_lifted_when_it_expires(held, origin):
    proxy = await held.token(AGENT)
    async with Operator(held) as operator, aiohttp.ClientSession() as session:
        await operator.kill(AGENT, mode="hold", ttl_s=1.0)
        async with session.get(f"http://{origin.host}/", proxy=proxy) as answer:
            assert answer.status == 200
        assert (await operator.call("GET", "/v1/mesh/kills"))["kills"] == []
        events = await operator.call("GET", "/v1/mesh/events?event_type=kill.expired")
        assert [event["actor"] for event in events["events"]] == ["system:expiry"]
