"""The control server alone is started anew under load, with all defaults: agents wait a moment, and nothing fails."""

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time

import aiohttp
import pytest
from support.scripted import until
from support.stopping import children
from support.system import System
from support.theatre import Agent, Theatre, digest

AGENT = "agent://acme/prod/mailer"
WAYS = ("plain", "tunnel", "intercept")
RESTARTS = 3
HOLD_FOR_S = 10.0


@pytest.fixture
async def system(tmp_path, authority):
    options = ("--workers", "2", "--upstream-ca", str(authority.ca_file))
    async with System(tmp_path / "data", *options, hung_after="2s") as running:
        yield running


class Load:
    """Numbered requests without end and streams of every kind, one way through the proxy."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.answered = 0
        self.longest_s = 0.0

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, system: System, authority, way: str):
        context = None if way == "plain" else authority.server_context("localhost")
        proxy = await system.token(AGENT, None if way == "plain" else way)
        trusted = system.ca_file if way == "intercept" else authority.ca_file
        checks = True if way == "plain" else ssl.create_default_context(cafile=str(trusted))
        async with (
            Theatre(context) as origin,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=checks),
                timeout=aiohttp.ClientTimeout(total=120),
            ) as session,
        ):
            yield cls(Agent(session, origin.url, proxy))

    async def ask(self) -> None:
        """A request that fails ends the test."""
        while True:
            began = time.monotonic()
            number = str(self.answered)
            assert await self.agent.put(number) == number
            self.answered += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            await asyncio.sleep(0.02)

    async def goes_on(self) -> None:
        answered = self.answered
        await until(lambda: self.answered > answered + 3, 30)

    async def streams(self) -> list[asyncio.Task]:
        """One of each kind, all of them moving."""
        kinds = (self.agent.download, self.agent.upload, self.agent.talk)
        moved = [asyncio.Event() for _ in kinds]
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(kind(seed, began))
            for seed, (kind, began) in enumerate(zip(kinds, moved, strict=True))
        ]
        for began in moved:
            await asyncio.wait_for(began.wait(), 30)
        return tasks


async def restarted(system: System, sign: signal.Signals) -> None:
    (control,) = children(system, "control")
    os.kill(control, sign)
    await until(lambda: children(system, "control") not in ([control], []), 60)


@pytest.fixture(scope="module")
def prompt_machine():
    """The promise is about seconds: a machine that takes them all to start one program cannot keep it."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import haltwire_control.app"], check=True)
    took = time.monotonic() - began
    if took > HOLD_FOR_S / 2:
        pytest.skip(f"this machine takes {took:.0f} s to start one program")


@pytest.mark.usefixtures("prompt_machine")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
async def test_no_request_fails_and_no_stream_breaks(system, authority, sign, capsys):
    """SIGTERM to the control server is how an operator restarts it; SIGKILL is how it crashes."""
    async with contextlib.AsyncExitStack() as stack:
        loads = [await stack.enter_async_context(Load.of(system, authority, way)) for way in WAYS]
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(load.ask()) for load in loads for _ in range(1)]
            for _ in range(RESTARTS):
                streams = [task for load in loads for task in await load.streams()]
                await restarted(system, sign)
                found = await asyncio.gather(*streams)
                assert found == [digest(seed) for _ in WAYS for seed in range(3)]
                # Each is a restart of its own: requests go on before the next one.
                for load in loads:
                    await load.goes_on()
            for task in asking:
                task.cancel()
        _, receipt = await system.api("POST", "/v1/mesh/kill", {"selector": AGENT, "wait_s": 20})
        assert receipt["confirmed"] is True, receipt
    longest_s = max(load.longest_s for load in loads)
    with capsys.disabled():
        answered = sum(load.answered for load in loads)
        print(
            f"\n{sign.name}: {answered} requests, none failed; the longest took {longest_s:.2f} s"
        )
    assert longest_s < HOLD_FOR_S
