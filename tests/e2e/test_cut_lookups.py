"""A kill reaches an agent whose destination is still being looked up: nobody is connected to afterwards."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from haltwire_proxy.destinations import Dialer, Rules
from support.client import Wire
from support.recorder import Recorder
from support.streams import Caller, Way
from support.world import INTERCEPTED, SECRET, World, basic

MAILER, READER = "agent://acme/prod/mailer", "agent://acme/prod/reader"
CASES = {
    "tunnel": (MAILER, SECRET, Way("http", "tunnel"), ("CONNECT", None)),
    "plain": (MAILER, SECRET, Way("http", None), ("GET", "/waiting")),
    "intercept": (READER, INTERCEPTED, Way("https", "intercept"), ("GET", "/waiting")),
}


class SlowNames:
    """A resolver that says nothing until it is told to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, host: str, port: int):
        self.asked.set()
        self.may_answer.wait(20)
        return [(socket.AF_INET, ("127.0.0.1", self._port))]


@pytest.mark.parametrize("name", CASES)
async def test_a_look_up_in_progress_leads_nowhere(tmp_path, authority, name):
    agent, secret, way, (method, path) = CASES[name]
    async with (
        Recorder() as origin,
        World(tmp_path, authority.ca_file, "http://127.0.0.1:1") as world,
    ):
        names = SlowNames(origin.port)
        world.services.dialer = world.inspector.dialer = dialer = Dialer(
            Rules(beyond_loopback=False), names
        )
        label = agent.removeprefix("agent://").replace("/", ".")
        url = f"http://{label}:{secret}@127.0.0.1:{world.port}"
        caller = Caller(world.port, url, way, "slow.test:443", world.ca_file)
        if way.tls == "tunnel":
            wire = await Wire.open(world.port)
            credentials = f"Proxy-Authorization: {basic(label, secret)}"
            await wire.request("CONNECT", caller.host, credentials, read=False)
        else:
            wire = await caller.connect()
            await wire.send(caller.head("GET", "/waiting"))
        assert await asyncio.to_thread(names.asked.wait, 10)
        enforced = world.kill(agent)
        assert enforced.ack.connections_cut == 1
        ((flight,),) = [row.in_flight for report in enforced.reports() for row in report.instances]
        assert (flight.method, flight.host, flight.path) == (method, "slow.test", path)
        assert (flight.sent, flight.bytes_up_acked) == ("none", 0 if path else None)
        await wire.ended()
        names.may_answer.set()
        async with asyncio.timeout(5):
            while dialer._lookups._running:
                await asyncio.sleep(0.01)
        assert origin.arrivals == []
        dialer.close()
