"""What needs no key, and the door for proxies: health, CA, OpenAPI, the WebSocket."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from haltwire import __version__

from haltwire_control.calls import Call
from haltwire_control.datadir import DataDirectory
from haltwire_control.errors import ApiError
from haltwire_control.following import Following
from haltwire_control.link import connect
from haltwire_control.metrics import CONTENT_TYPE
from haltwire_control.service import Service
from haltwire_control.store import StoreError

PROVEN_FOR_S = 1.0
"Everybody may ask whether the store works, so an answer is good for a while."

MEASURED_FOR_S = 0.25
"The same for numbers: of ten thousand orders they take a few milliseconds."


class PublicApi:
    """The open routes, and the link."""

    def __init__(self, service: Service, following: Following, directory: DataDirectory) -> None:
        self._service = service
        self._following = following
        self._directory = directory
        self._proven_at = self._measured_at = float("-inf")
        self._measured = b""
        self.document: dict[str, Any] = {}
        "The OpenAPI document, once the routes are known."

    async def healthz(self, _call: Call) -> web.Response:
        """The process answers."""
        return web.json_response({"ok": True})

    async def health(self, _call: Call) -> web.Response:
        """The process answers, and says what it is."""
        return web.json_response({"ok": True, "version": __version__})

    async def readyz(self, _call: Call) -> web.Response:
        """The store takes writes, and has taken all that is in force."""
        if self._service.state.volatile:
            raise _not_ready("an order in force is not stored yet")
        if self._service.state.recovery is not None:
            raise _not_ready(f"{self._service.state.recovery.why}: see `haltwire recover`")
        if self._service.store.is_full:
            raise _not_ready("the disk is full or failing: only orders are stored")
        if time.monotonic() - self._proven_at > PROVEN_FOR_S:
            try:
                await self._service.store.probe()
            except StoreError as error:
                raise _not_ready("the store takes no writes") from error
            self._proven_at = time.monotonic()
        return web.json_response({"ok": True})

    async def metrics(self, _call: Call) -> web.Response:
        """Numbers for Prometheus."""
        moment = time.monotonic()
        if moment - self._measured_at > MEASURED_FOR_S:
            self._measured, self._measured_at = self._service.metrics.text(), moment
        return web.Response(body=self._measured, headers={"Content-Type": CONTENT_TYPE})

    async def ca_certificate(self, _call: Call) -> web.Response:
        """Our CA."""
        return self._pem("ca.pem")

    async def ca_bundle(self, _call: Call) -> web.Response:
        """The system's CAs and ours."""
        return self._pem("ca-bundle.pem")

    async def openapi(self, _call: Call) -> web.Response:
        """The routes that exist."""
        return web.json_response(self.document)

    async def connect_proxy(self, call: Call) -> web.WebSocketResponse:
        """Follow a proxy until its link ends."""
        if "Origin" in call.request.headers:
            raise ApiError(403, "browser_refused", "a page in a browser is no proxy")
        actor = call.caller.actor
        return await connect(
            call.request, lambda link, hello: self._following.serve(link, hello, actor)
        )

    def _pem(self, name: str) -> web.Response:
        content = self._directory.read_public(name)
        if content is None:
            raise ApiError(404, "not_found", "there is no CA in the data directory")
        return web.Response(body=content, content_type="application/x-pem-file")


def _not_ready(why: str) -> ApiError:
    return ApiError(503, "not_ready", why, retryable=True)
