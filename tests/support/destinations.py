"""An agent that asks a proxy for destinations, and what it is told."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from support.client import Wire
from support.system import System
from support.world import basic

ITSELF = "is haltwire itself"
METADATA_SERVICE = "is a cloud's metadata service"


class Agent:
    """An agent's credentials at a proxy on loopback."""

    def __init__(self, port: int, label: str, secret: str) -> None:
        self.port = port
        self.header = f"Proxy-Authorization: {basic(label, secret)}"

    @classmethod
    async def of(cls, system: System, name: str, tls: str = "tunnel") -> Agent:
        secret = urlsplit(await system.token(f"agent://acme/prod/{name}", tls)).password
        return cls(system.port, f"acme.prod.{name}", secret)

    async def open(self) -> Wire:
        return await Wire.open(self.port)

    async def connect(self, target: str) -> tuple[int, dict]:
        """(status, error) of a CONNECT; the connection stays until the end of the test."""
        return await self._ask(f"CONNECT {target}")

    async def get(self, url: str) -> tuple[int, dict]:
        return await self._ask(f"GET {url}")

    async def _ask(self, what: str) -> tuple[int, dict]:
        wire = await self.open()
        method, target = what.split(" ", 1)
        host = (
            f"Host: {target.partition('://')[2].partition('/')[0]}\r\n" if method == "GET" else ""
        )
        lines = f"{method} {target} HTTP/1.1\r\n{host}{self.header}\r\n\r\n"
        await wire.send(lines.encode())
        answer = await wire.answer(head=method == "CONNECT")
        wire.close()
        return answer.status, json.loads(answer.body) if answer.body[:1] == b"{" else {}


def refused(answer, code, words):
    status, error = answer
    assert (status, error.get("error")) == (
        {"destination_denied": 403, "malformed_request": 400}[code],
        code,
    ), answer
    assert words in error["message"]
