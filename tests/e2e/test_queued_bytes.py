"""What is queued for a slow upstream when a kill comes never leaves: it gets what its own kernel had taken already."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.operator import Operator
from support.slow import SlowOrigin
from support.streams import WAYS, Caller, Way

SENT = 6_000_000
QUEUED = 64 * 1024
"The least that we have taken and the upstream's kernel has not."


async def _upload(stack: AsyncExitStack, system, authority, way) -> SlowOrigin:
    """A client that has 6 MB for a slow upstream which has begun to read. The origin."""
    context = authority.server_context("localhost") if way.scheme == "https" else None
    origin = await stack.enter_async_context(SlowOrigin(context))
    trusted = system.ca_file if way.tls == "intercept" else authority.ca_file
    url = await system.token(_agent(way), way.tls)
    caller = Caller(system.port, url, way, origin.host, trusted)
    wire = await caller.connect()
    head = caller.head("POST", "/upload", f"Content-Length: {SENT}")
    sending = asyncio.get_running_loop().create_task(_send(wire, head + bytes(SENT)), name="send")
    stack.callback(sending.cancel)
    await origin.has_read(QUEUED)
    return origin


def _agent(way: Way) -> str:
    return f"agent://acme/{way}/mailer"


async def _send(wire, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        await wire.send(data)


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_nothing_queued_leaves_after_the_receipt(shared_system, authority, way):
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(shared_system))
        origin = await _upload(stack, shared_system, authority, way)
        receipt = await operator.kill(_agent(way))
        arrived = origin.arrived()
        total = await origin.rest()
        assert total == arrived
        (flight,) = [f for row in receipt.body["instances"] for f in row["in_flight"]]
        print(
            f"\n{way}: taken {flight['bytes_up']}, acknowledged {flight['bytes_up_acked']},"
            f" arrived {total} with {origin.receive_buffer} of receive buffer"
        )
        assert flight["bytes_up"] > total + QUEUED, "nothing was queued: this proves nothing"
        assert flight["bytes_up"] < SENT
        assert 0 < flight["bytes_up_acked"] <= total
        assert flight["sent"] == ("unknown" if way.tls == "tunnel" else "partly")
        assert [proxy["residual_bytes_max"] for proxy in receipt.body["proxies"]] == [0, 0]


async def test_nothing_queued_leaves_after_the_end_of_a_worker(system, authority):
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        origins = {way: await _upload(stack, system, authority, way) for way in WAYS}
        workers = (await operator.call("GET", "/v1/proxies"))["proxies"]
        before = {way: origin.arrived() for way, origin in origins.items()}
        for worker in workers:
            os.kill(worker["pid"], signal.SIGKILL)
        async with asyncio.timeout(5):
            while not all(_has_ended(worker["pid"]) for worker in workers):
                await asyncio.sleep(0)
        arrived = {way: origin.arrived() for way, origin in origins.items()}
        for way, origin in origins.items():
            total = await origin.rest()
            print(f"\n{way}: {total - before[way]} bytes arrived after SIGKILL")
            assert total == arrived[way]
            assert total - before[way] <= origin.receive_buffer


def _has_ended(pid: int) -> bool:
    """Whether its sockets are closed: its entry is gone, or that of a zombie without another thread."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    # proc_pid_stat(5): state and num_threads; the threads of one that is being killed end one by one.
    fields = stat.rpartition(")")[2].split()
    return fields[0] in ("Z", "X") and int(fields[17]) <= 1
