"""haltwire as its users have it: `haltwire up` in a process of its own, driven by its commands and API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from haltwire.proxyenv import proxy_environment

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.upper().startswith(("HALTWIRE_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"))
}


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


async def run(
    *command: str,
    env: dict[str, str] | None = None,
    timeout: float = 40,
    cwd: Path | None = None,
) -> Finished:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=env or CLEAN,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{command} hangs: {out.decode()} {err.decode()}") from None
    return Finished(process.returncode or 0, out.decode(), err.decode())


class System:
    """One `haltwire up`."""

    command: tuple[str, ...] = (
        "up",
        "--proxy-listen",
        "127.0.0.1:0",
        "--control-listen",
        "127.0.0.1:0",
    )

    has_workers = True
    prefix: tuple[str, ...] = ()
    "What it is started by, such as a shell that sets limits."

    def __init__(
        self,
        data_dir: Path,
        *options: str,
        env: dict[str, str] | None = None,
        hung_after: str = "off",  # tests stop processes for seconds, and want them back as they were
        drain_for: str = "0s",
    ) -> None:
        self.data_dir = data_dir
        self._env = CLEAN if env is None else env
        drain = ("--drain-for", drain_for) if self.has_workers else ()
        self._options = ("--hung-after", hung_after, *drain, *options)

    async def __aenter__(self) -> System:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self.prefix,
            sys.executable,
            "-m",
            "haltwire_cli",
            *self.command,
            "--data-dir",
            str(self.data_dir),
            *self._options,
            env=self._env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        endpoints = self.data_dir / "endpoints.json"
        async with asyncio.timeout(40):
            while not endpoints.exists():
                if self.process.returncode is not None:
                    raise AssertionError((await self.process.stdout.read()).decode())
                await asyncio.sleep(0.02)
        self._learn(json.loads(endpoints.read_text()))

    def _learn(self, said: dict[str, str | None]) -> None:
        self.proxy_url, self.control_url = said["proxy_url"], said["control_url"]
        self.ca_file = Path(said["ca_file"])
        self.control_ca = Path(said.get("control_certificate") or said["ca_file"])
        self.pinned = "control_certificate" in said
        self.key = (self.data_dir / "admin.key").read_text().strip()

    @property
    def port(self) -> int:
        return urlsplit(self.proxy_url).port

    async def stop(self, sign: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(sign)
        out, _ = await asyncio.wait_for(self.process.communicate(), 20)
        self.output = out.decode()
        return self.process.returncode

    async def cli(self, *arguments: str, env: dict[str, str] | None = None) -> Finished:
        """One of our commands, against this data directory."""
        variables = {**(env or CLEAN), "HALTWIRE_DATA_DIR": str(self.data_dir)}
        return await run(sys.executable, "-m", "haltwire_cli", *arguments, env=variables)

    async def api(self, method: str, path: str, body=None, key: str | None = None):
        """(status, JSON) of one call."""
        return await asyncio.to_thread(self._call, method, path, body, key or self.key)

    def _call(self, method, path, body, key):
        request = urllib.request.Request(
            self.control_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context())
        )
        try:
            with opener.open(request, timeout=35) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def context(self) -> ssl.SSLContext:
        """What takes this control server's certificate and no other."""
        with contextlib.suppress(FileNotFoundError):  # a test may have taken the directory away
            self._trusted = self.control_ca.read_text()
        context = ssl.create_default_context(cadata=self._trusted)
        context.check_hostname = not self.pinned
        return context

    async def token(self, selector: str, tls: str | None = None) -> str:
        """The proxy URL, with its secret, of a new agent token."""
        status, made = await self.api("POST", "/v1/tokens", {"selector": selector, "tls": tls})
        assert status == 201, made
        return made["proxy_url"]

    def agent_environment(self, proxy_url: str, bundle: Path | None = None) -> dict[str, str]:
        """What an agent's process gets."""
        ours = self.data_dir / "public" / "ca-bundle.pem"
        return {
            **CLEAN,
            **proxy_environment(proxy_url, str(self.ca_file), str(bundle or ours)),
        }
