"""The halves alone, as their users have them: `haltwire control` here, `haltwire proxy` there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from support.system import System


class ControlAlone(System):
    """One `haltwire control`."""

    command = ("control", "--control-listen", "127.0.0.1:0")
    has_workers = False

    async def proxy_key(self, name: str = "edge") -> str:
        """The secret of a new key of a proxy."""
        status, made = await self.api("POST", "/v1/keys", {"name": name, "role": "proxy"})
        assert status == 201, made
        return made["secret"]

    async def secret(self, selector: str, tls: str | None = None) -> str:
        """The secret of a new agent token."""
        status, made = await self.api("POST", "/v1/tokens", {"selector": selector, "tls": tls})
        assert status == 201, made
        return made["secret"]

    async def proxies(self) -> list[dict]:
        _, answer = await self.api("GET", "/v1/proxies")
        return answer["proxies"]

    async def connected(self, count: int) -> None:
        """Wait until that many workers have a link."""
        async with asyncio.timeout(30):
            while sum(proxy["state"] == "connected" for proxy in await self.proxies()) != count:
                await asyncio.sleep(0.05)


class ProxyAlone(System):
    """One `haltwire proxy`; what it says is in `lines` as it comes."""

    command = ("proxy", "--proxy-listen", "127.0.0.1:0")

    def __init__(self, data_dir: Path, control_url: str, key: str, *options: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        key_file = data_dir.parent / f"{data_dir.name}.key"
        key_file.touch(0o600)
        key_file.write_text(key)
        super().__init__(data_dir, "--control", control_url, "--key-file", str(key_file), *options)
        self.lines: list[str] = []
        self._heard = asyncio.Event()

    async def start(self) -> None:
        await super().start()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def stop(self, *arguments: int) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 20)
        await self._reading
        return self.process.returncode

    def _learn(self, said: dict[str, str | None]) -> None:
        assert said["control_url"] is None, "no control server runs there"
        self.proxy_url, self.ca_file = said["proxy_url"], Path(said["ca_file"])

    @property
    def workers(self) -> list[int]:
        """The pids of its children."""
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    async def says(self, words: str, times: int = 1) -> None:
        """Wait until these words have been said that often."""
        async with asyncio.timeout(30):
            while sum(words in line for line in self.lines) < times:
                self._heard.clear()
                await self._heard.wait()

    async def _read(self) -> None:
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode())
            self._heard.set()
