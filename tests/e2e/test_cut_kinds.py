"""A kill ends every kind of live traffic, many of each at once, and nothing else."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from support.operator import Operator
from support.recorder import Recorder
from support.streams import (
    KINDS,
    WAYS,
    Caller,
    Stream,
    in_flight_expected,
    in_flight_of,
)

EACH = 40
"Streams of each kind, of each agent."
AT_ONCE = 16
"Streams that are opened side by side."


async def _open(caller: Caller) -> list[Stream]:
    kinds = [kind for kind in KINDS if kind.method or caller.way.tls]
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(kind) -> Stream:
        async with limit:
            return await Stream.open(caller, kind)

    return await asyncio.gather(*(one(kind) for kind in kinds for _ in range(EACH)))


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_every_stream_of_the_victim_ends_and_none_of_a_bystander(
    shared_system, authority, way
):
    system = shared_system
    victim, bystander = f"agent://acme/{way}/mailer", f"agent://acme/{way}/bystander"
    trusted = system.ca_file if way.tls == "intercept" else authority.ca_file
    async with AsyncExitStack() as stack:
        context = authority.server_context("localhost") if way.scheme == "https" else None
        origins, streams = {}, {}
        for agent in (victim, bystander):
            origin = origins[agent] = await stack.enter_async_context(Recorder(context))
            proxy_url = await system.token(agent, way.tls)
            caller = Caller(system.port, proxy_url, way, origin.host, trusted, "i-1")
            streams[agent] = await _open(caller)
        for agent, origin in origins.items():
            asked = [stream for stream in streams[agent] if stream.kind.method]
            reached = streams[agent] if way.tls == "tunnel" else asked
            await origin.has(len(reached), len(asked))
        await _uploads_have_arrived(origins[victim], streams[victim])
        operator = await stack.enter_async_context(Operator(system))
        receipt = await operator.kill(victim)
        arrived = origins[victim].arrived()
        await asyncio.gather(*(asyncio.wait_for(s.ended.wait(), 5) for s in streams[victim]))
        await origins[victim].all_ended()
        assert origins[victim].arrived() == arrived, "bytes came after the receipt"
        assert receipt.cut == len(streams[victim])
        assert in_flight_of(receipt.body) == in_flight_expected(streams[victim])
        assert "not-for-receipts" not in json.dumps(receipt.body)
        assert len(origins[bystander].live) == len(
            [s for s in streams[bystander] if s.kind.method or way.tls == "tunnel"]
        )
        await _all_go_on(origins[bystander], streams[bystander])
        late = sorted(stream.ended_at - receipt.called_at for stream in streams[victim])
        p99 = late[int(len(late) * 0.99)]
        print(
            f"\n{way}: {len(late)} streams cut, call to client end: p50 {late[len(late) // 2] * 1e3:.1f} ms,"
            f" p99 {p99 * 1e3:.1f} ms, max {late[-1] * 1e3:.1f} ms;"
            f" receipt after {(receipt.answered_at - receipt.called_at) * 1e3:.1f} ms"
        )
        assert p99 < 1


async def _uploads_have_arrived(origin: Recorder, streams: list[Stream]) -> None:
    uploads = sum(stream.kind.name == "upload" for stream in streams)
    async with asyncio.timeout(10):
        while sum(b"more" in arrival.plain for arrival in origin.arrivals) < uploads:
            await asyncio.sleep(0.01)


async def _all_go_on(origin: Recorder, streams: list[Stream]) -> None:
    async def answered() -> None:
        while True:
            origin.answer()
            await asyncio.sleep(0.05)

    answering = asyncio.get_running_loop().create_task(answered())
    try:
        await asyncio.gather(*(stream.goes_on() for stream in streams))
    finally:
        answering.cancel()
