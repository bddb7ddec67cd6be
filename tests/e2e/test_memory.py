"""However much flows through a worker, its memory stays flat."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import websockets
from support.bulk import BulkOrigin, download, upgraded, upload
from support.procs import Peaks
from support.streams import Caller, Way

READER = "agent://acme/prod/reader"
"Nobody is killed here."
MUCH = 300_000_000
UPGRADED = 200_000_000
ALLOWED = 40 * 1024 * 1024
MESSAGES, MESSAGE = 20_000, "x" * 4096
"80 MB, if somebody kept them."


async def _peaks(system) -> Peaks:
    _, workers = await system.api("GET", "/v1/proxies")
    return Peaks(worker["pid"] for worker in workers["proxies"])


def _caller(system, authority, url: str, way: Way, host: str) -> Caller:
    trusted = system.ca_file if way.tls == "intercept" else authority.ca_file
    return Caller(system.port, url, way, host, trusted)


@pytest.mark.parametrize("tls", ["tunnel", "intercept"])
async def test_300_megabytes_up_and_down(shared_system, authority, tls):
    system = shared_system
    with BulkOrigin(authority.server_context("localhost")) as origin:
        url = await system.token(READER, tls)
        caller = _caller(system, authority, url, Way("https", tls), origin.host)
        for _ in range(4):  # whichever worker gets it later has done it once before
            await asyncio.to_thread(upload, caller, 1_000_000)
            await asyncio.to_thread(download, caller, 1_000_000)
        peaks = await _peaks(system)
        for move in (upload, download):
            await asyncio.to_thread(move, caller, MUCH)
            print(f"\n{tls} {move.__name__}: grew by {peaks.growth() / 1e6:.1f} MB")
            assert peaks.growth() < ALLOWED


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_200_megabytes_behind_an_upgrade(shared_system, authority, scheme):
    system = shared_system
    context = authority.server_context("localhost") if scheme == "https" else None
    with BulkOrigin(context) as origin:
        url = await system.token(READER, "intercept")
        caller = _caller(system, authority, url, Way(scheme, "intercept"), origin.host)
        for _ in range(4):
            await asyncio.to_thread(upgraded, caller, 1_000_000)
        peaks = await _peaks(system)
        await asyncio.to_thread(upgraded, caller, UPGRADED)
        print(f"\n{scheme}: grew by {peaks.growth() / 1e6:.1f} MB")
        assert peaks.growth() < ALLOWED


async def test_20000_websocket_messages(shared_system, authority):
    system = shared_system
    url = await system.token(READER, "intercept")
    heard = 0

    async def listen(socket) -> None:
        nonlocal heard
        async for _ in socket:
            heard += 1
            if heard % 2 == 0:
                await socket.send(MESSAGE)

    context = authority.server_context("localhost")
    trust = ssl.create_default_context(cafile=str(system.ca_file))
    async with websockets.serve(listen, "127.0.0.1", 0, ssl=context) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with websockets.connect(
            f"wss://localhost:{port}/", ssl=trust, proxy=url, max_queue=None, compression=None
        ) as socket:
            peaks = await _peaks(system)
            sent = MESSAGES * 2 // 3

            async def talk() -> None:
                for _ in range(sent):
                    await socket.send(MESSAGE)

            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                tasks.create_task(talk())
                for _ in range(sent // 2):
                    await socket.recv()
        print(f"\ngrew by {peaks.growth() / 1e6:.1f} MB")
        assert heard == sent
        assert peaks.growth() < ALLOWED
