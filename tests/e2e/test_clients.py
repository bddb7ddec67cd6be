"""Real clients through the proxy: each gets through, and after a kill each is refused with nothing upstream."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
from support.site import PACKAGE
from support.system import run

URLLIB = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1] + "/echo").read().decode())
"""
REQUESTS = """
import sys, requests
answer = requests.get(sys.argv[1] + "/echo"); print(answer.status_code, answer.text)
"""
HTTPX = """
import sys, httpx
answer = httpx.get(sys.argv[1] + "/echo"); print(answer.status_code, answer.text)
"""
HTTPX2 = """
import sys, httpx
answer = httpx.Client(http2=True).get(sys.argv[1] + "/echo"); print(answer.status_code, answer.text)
"""
AIOHTTP = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(sys.argv[1] + "/echo") as answer:
            print(answer.status, await answer.text())
asyncio.run(main())
"""
OPENAI = """
import sys, openai
client = openai.OpenAI(api_key="k", base_url=sys.argv[1] + "/v1")
try:
    print("ok", client.chat.completions.create(model="m", messages=[]).choices[0].message.content)
except openai.APIStatusError as error:
    print(type(error).__name__, error.status_code, error.response.text)
"""
ANTHROPIC = """
import sys, anthropic
client = anthropic.Anthropic(api_key="k", base_url=sys.argv[1])
try:
    message = client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
    print("ok", message.content[0].text)
except anthropic.APIStatusError as error:
    print(type(error).__name__, error.status_code, error.response.text)
"""
WEBSOCKETS = """
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1].replace("http", "ws", 1) + "/ws") as socket:
        await socket.send("hi"); print("ok", await socket.recv())
asyncio.run(main())
"""


@dataclass(frozen=True)
class Client:
    name: str
    command: tuple[str, ...]
    good: str
    "What it prints when it got through."
    typed: bool = False
    "Whether it shows the refusal's body inside an intercepted tunnel."


def python(name: str, source: str, good: str, *, typed: bool = False) -> Client:
    return Client(name, (sys.executable, "-c", source, "{url}"), good, typed)


CLIENTS = [
    Client("curl", ("curl", "-sS", "{url}/echo"), '"ok": true', typed=True),
    python("urllib", URLLIB, '"ok": true'),
    python("requests", REQUESTS, '"ok": true', typed=True),
    python("httpx", HTTPX, '"ok": true', typed=True),
    python("httpx2", HTTPX2, '"ok": true', typed=True),
    python("aiohttp", AIOHTTP, '"ok": true', typed=True),
    python("openai", OPENAI, "ok hello", typed=True),
    python("anthropic", ANTHROPIC, "ok hello", typed=True),
    python("websockets", WEBSOCKETS, "ok echo hi"),
    Client("git", ("git", "ls-remote", "{url}/files/repo.git"), "refs/heads/main"),
    Client(
        "pip",
        (
            *(
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-cache-dir",
                "--retries=0",
            ),
            *("--index-url", "{url}/simple/", "--trusted-host", "nobody", "-d", "{tmp}", PACKAGE),
        ),
        "Saved",
    ),
]
WAYS = [("http", None), ("https", "tunnel"), ("https", "intercept")]


@pytest.mark.parametrize(("scheme", "tls"), WAYS, ids=lambda way: str(way))
async def test_real_clients_pass_and_are_stopped(system, site, authority, tmp_path, scheme, tls):
    proxy_url = await system.token("agent://acme/prod/mailer~i-1", tls or "intercept")
    environment = system.agent_environment(
        proxy_url, authority.ca_file if tls == "tunnel" else None
    )
    environment |= {"PIP_CONFIG_FILE": "/dev/null", "GIT_TERMINAL_PROMPT": "0"}

    async def go(client: Client):
        url = f"{scheme}://{site.host(scheme)}"
        command = [
            part.replace("{url}", url).replace("{tmp}", str(tmp_path)) for part in client.command
        ]
        return await run(*command, env=environment)

    for client in CLIENTS:
        done = await go(client)
        assert client.good in done.out, (client.name, done)
    for path, headers in site.seen:
        names = {name.lower() for name in headers}
        assert not {"proxy-authorization", "proxy-connection"} & names, path
        assert not any(name.startswith("x-agent") for name in names), path

    status, receipt = await system.api(
        "POST", "/v1/mesh/kill", {"selector": "agent://acme/prod/mailer", "reason": "drill"}
    )
    assert (status, receipt["confirmed"]) == (200, True), receipt
    site.seen.clear()
    refused_before = await _refused(system)
    for client in CLIENTS:
        done = await go(client)
        assert client.good not in done.out, (client.name, done)
        if client.typed and tls == "intercept":
            assert "agent_killed" in done.out, (client.name, done)
            assert await _refused(system, above=refused_before) == refused_before + 1, client.name
        refused_before = await _refused(system)
    assert site.seen == []


async def _refused(system, above: int | None = None) -> int:
    """How many requests of the agent have been refused, once that has been reported."""
    import asyncio

    async with asyncio.timeout(5):
        previous = None
        while True:
            _, shown = await system.api("GET", "/v1/mesh/agents/acme.prod.mailer")
            refused = sum(row["refused"] for row in shown["agent"]["instances_detail"])
            if (above is None or refused > above) and refused == previous:
                return refused
            previous = refused
            await asyncio.sleep(0.3)
