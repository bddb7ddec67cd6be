"""The person at the switch: calls from this very loop, so that nothing lies between an answer and a look."""

from __future__ import annotations

import time
from dataclasses import dataclass

import aiohttp

from support.system import System


@dataclass(frozen=True)
class Receipt:
    """An answered kill. Made in the same loop turn in which the answer was read."""

    body: dict
    called_at: float
    "On the monotonic clock, as `answered_at`."
    answered_at: float

    @property
    def cut(self) -> int:
        """The connections that its proxies say they have cut."""
        return sum(proxy["connections_cut"] for proxy in self.body["proxies"])


class Operator:
    """Kills and resumes over one kept connection."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def __aenter__(self) -> Operator:
        self._session = aiohttp.ClientSession(
            self._system.control_url,
            headers={"Authorization": f"Bearer {self._system.key}"},
            trust_env=False,
            connector=aiohttp.TCPConnector(ssl=self._system.context()),
        )
        await self.call(
            "GET", "/v1/mesh/kills"
        )  # the connection is open before anybody is in a hurry
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: dict | None = None) -> dict:
        """The answer's JSON, whatever its status."""
        async with self._session.request(method, path, json=body) as answer:
            return await answer.json()

    async def kill(self, selector: str, **more: object) -> Receipt:
        """Kill, and see that it is confirmed."""
        called_at = time.monotonic()
        body = await self.call("POST", "/v1/mesh/kill", {"selector": selector, **more})
        answered_at = time.monotonic()
        assert body["confirmed"] is True, body
        return Receipt(body, called_at, answered_at)

    async def resume(self, selector: str) -> dict:
        """Lift it."""
        return await self.call("POST", "/v1/mesh/resume", {"selector": selector})
