"""The network lab with the control server on one machine and the proxy on another."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from support.netlab import CONTROL_PORT, ORIGIN_PUBLIC, PROXY_PORT, Lab
from support.system import CLEAN, run

CONTROL_NAME = "control.test"


class SplitLab(Lab):
    """`haltwire control` outside, on every address there; `haltwire proxy` behind its own, in between."""

    async def _start(self) -> None:
        self.names.zones[CONTROL_NAME] = [ORIGIN_PUBLIC]
        self.data_dir = self._folder / "control"
        self._prefix = (
            "ip", "netns", "exec", self.outside.name, sys.executable, "-m", "haltwire_cli",
        )  # fmt: skip
        self.control = await self._begin(
            self._prefix, "control", self.data_dir,
            "--control-listen", f"0.0.0.0:{CONTROL_PORT}", "--insecure",
        )  # fmt: skip
        key = self._folder / "proxy.key"
        key.touch(0o600)
        made = await run(
            *self._prefix, "key", "create", "edge", "--role", "proxy", "--json",
            "--data-dir", str(self.data_dir),
        )  # fmt: skip
        key.write_text(json.loads(made.out)["secret"])
        resolver = self._folder / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        prefix = (
            "ip", "netns", "exec", self.gateway.name, "sh", "-c",
            'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver),
            sys.executable, "-m", "haltwire_cli",
        )  # fmt: skip
        self.process = await self._begin(
            prefix, "proxy", self._folder / "proxy",
            "--control", f"http://{CONTROL_NAME}:{CONTROL_PORT}", "--insecure",
            "--key-file", str(key), "--workers", "1",
            "--proxy-listen", f"0.0.0.0:{PROXY_PORT}", *self._options,
        )  # fmt: skip

    async def __aexit__(self, *_: object) -> None:
        control = getattr(self, "control", None)
        if control is not None and control.returncode is None:
            control.send_signal(signal.SIGTERM)
            await asyncio.wait_for(control.communicate(), 20)
        await super().__aexit__()

    async def _begin(
        self, prefix: tuple[str, ...], command: str, data_dir: Path, *options: str
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *prefix, command, "--data-dir", str(data_dir), *options,
            env=CLEAN, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(40):
            while not (data_dir / "endpoints.json").exists():
                if process.returncode is not None:
                    raise AssertionError((await process.stdout.read()).decode())
                await asyncio.sleep(0.02)
        return process
