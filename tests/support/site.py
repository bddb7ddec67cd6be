"""A site that real clients can use: echo, WebSocket, a git repository, a package index."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
import zipfile
from pathlib import Path

from aiohttp import WSMsgType, web

PACKAGE = "haltwire_probe"


class Site:
    """Serves one folder over http and https; remembers every request's headers."""

    def __init__(self, folder: Path, context: ssl.SSLContext) -> None:
        self._folder = folder
        self._context = context
        self.seen: list[tuple[str, dict[str, str]]] = []

    async def __aenter__(self) -> Site:
        _make_git_repository(self._folder)
        _make_package(self._folder)
        app = web.Application(middlewares=[self._remember])
        app.router.add_route("*", "/echo", self._echo)
        app.router.add_get("/ws", self._websocket)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_get(f"/simple/{PACKAGE.replace('_', '-')}/", self._index)
        app.router.add_static("/files/", self._folder)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self.http_port = await self._listen(None)
        self.https_port = await self._listen(self._context)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def host(self, scheme: str) -> str:
        return f"localhost:{self.https_port if scheme in ('https', 'wss') else self.http_port}"

    async def _listen(self, context: ssl.SSLContext | None) -> int:
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    @web.middleware
    async def _remember(self, request, handler):
        self.seen.append((request.path, dict(request.headers)))
        return await handler(request)

    async def _echo(self, request):
        return web.json_response({"ok": True, "length": len(await request.read())})

    async def _websocket(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"echo {message.data}")
        return socket

    async def _chat(self, request):
        return web.json_response(
            {
                "id": "c1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "hello"},
                    }
                ],
            }
        )

    async def _messages(self, request):
        return web.json_response(
            {
                "id": "m1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [{"type": "text", "text": "hello"}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            }
        )

    async def _index(self, request):
        name = f"{PACKAGE}-1.0-py3-none-any.whl"
        digest = hashlib.sha256((self._folder / name).read_bytes()).hexdigest()
        page = f'<a href="/files/{name}#sha256={digest}">{name}</a>'
        return web.Response(text=page, content_type="text/html")


def _make_git_repository(folder: Path) -> None:
    work, bare = folder / "work", folder / "repo.git"
    if bare.exists():
        return
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.test"]

    def git(*arguments: str) -> None:
        subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)

    git("init", "-q", "-b", "main", str(work))
    git("-C", str(work), "commit", "-q", "--allow-empty", "-m", "first")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(bare), "update-server-info")


def _make_package(folder: Path) -> None:
    info = f"{PACKAGE}-1.0.dist-info"
    files = {
        f"{PACKAGE}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    with zipfile.ZipFile(folder / f"{PACKAGE}-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            record.append(f"{name},sha256={digest.decode().rstrip('=')},{len(text)}")
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))
