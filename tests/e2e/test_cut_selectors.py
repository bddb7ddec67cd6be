"""A kill reaches whom it names: one instance, a glob, everybody; and nobody else."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from support.operator import Operator
from support.recorder import Recorder
from support.streams import KINDS, Caller, Stream, Way

REPEATABLE = [kind for kind in KINDS if kind.name in ("events", "socket", "idle")]
AGENTS = {
    "mailer-1": ("agent://acme/prod/mailer", "i-1"),
    "mailer-2": ("agent://acme/prod/mailer", "i-2"),
    "reader": ("agent://acme/prod/reader", "i-1"),
    "deep": ("agent://acme/prod/team/mailer", "i-1"),
    "dev": ("agent://acme/dev/mailer", "i-1"),
    "other": ("agent://other/prod/mailer", "i-1"),
}
STEPS = [
    ("agent://acme/prod/mailer~i-1", {"mailer-1"}),
    ("agent://acme/prod/*", {"mailer-2", "reader"}),
    ("agent://acme/prod/**", {"deep"}),
    ("agent://**", {"dev", "other"}),
]
"Whom each further kill stops."


async def test_each_kill_stops_whom_it_names(system, authority):
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        context = authority.server_context("localhost")
        origins: dict[str, Recorder] = {}
        streams: dict[str, list[Stream]] = {}
        tokens: dict[tuple[str, str], str] = {}
        for name, (agent, instance) in AGENTS.items():
            origin = origins[name] = await stack.enter_async_context(Recorder(context))
            streams[name] = []
            for tls, trusted in (("tunnel", authority.ca_file), ("intercept", system.ca_file)):
                if (agent, tls) not in tokens:
                    tokens[agent, tls] = await system.token(agent, tls)
                way, url = Way("https", tls), tokens[agent, tls]
                caller = Caller(system.port, url, way, origin.host, trusted, instance)
                streams[name] += [await Stream.open(caller, kind) for kind in REPEATABLE]
            await origin.has(len(streams[name]), len(streams[name]))
        alive = set(AGENTS)
        for selector, stopped in STEPS:
            receipt = await operator.kill(selector)
            arrived = {name: origins[name].arrived() for name in stopped}
            assert receipt.cut == sum(len(streams[name]) for name in stopped), selector
            assert receipt.body["escapable"] is ("~" in selector)
            for name in stopped:
                await origins[name].all_ended()
                assert origins[name].arrived() == arrived[name]
                for stream in streams[name]:
                    await asyncio.wait_for(stream.ended.wait(), 5)
            alive -= stopped
            for name in alive:
                assert len(origins[name].live) == len(streams[name]), (selector, name)
                await asyncio.gather(*(stream.goes_on() for stream in streams[name]))
        assert alive == set()


async def test_a_revoked_token_cuts_those_it_let_in_and_nobody_else(system, authority):
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(Operator(system))
        tokens, origins, streams = {}, {}, {}
        for name in ("revoked", "kept"):
            body = {"selector": "agent://acme/prod/mailer", "tls": "intercept"}
            tokens[name] = await operator.call("POST", "/v1/tokens", body)
            origin = origins[name] = await stack.enter_async_context(Recorder())
            way, url = Way("http", "intercept"), tokens[name]["proxy_url"]
            caller = Caller(system.port, url, way, origin.host, system.ca_file)
            streams[name] = [await Stream.open(caller, kind) for kind in REPEATABLE]
        await operator.call("DELETE", f"/v1/tokens/{tokens['revoked']['token_id']}")
        for stream in streams["revoked"]:
            await asyncio.wait_for(stream.ended.wait(), 5)
        await origins["revoked"].all_ended()
        assert len(origins["kept"].live) == len(streams["kept"])
        await asyncio.gather(*(stream.goes_on() for stream in streams["kept"]))
