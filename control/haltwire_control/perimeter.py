"""The HTTP edge before any route: what every answer carries, also those that aiohttp makes itself, and its limits.

There is no CORS, and no check of Host: a page that rebinds its name to this address would still need a
key in a header, which no browser adds by itself, and whoever comes through a port forward or a reverse
proxy says names that this server cannot know. What is open without a key tells nothing about agents.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from haltwire_control.errors import ApiError

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
SERVER = "haltwire"
"Instead of aiohttp's and Python's versions."
STRANGERS_MOST = 256
"Connections without an operator's or proxy's key; the one that was quiet for longest makes room for a new one."
QUIET_S = 75.0
"From accepting to a whole head, and between requests: nginx's keep-alive."
LINGERING_S = 2.0
"How long the rest of a body that nobody wants is read, so that its sender gets to see the answer."
LINE_MOST = 8190
"Of the request line and each header; a head has at most 128 headers."


class Runner(web.AppRunner):
    """Serves an application inside the perimeter."""

    def __init__(self, application: web.Application, shutdown_s: float) -> None:
        super().__init__(
            application, access_log=None, handle_signals=False, shutdown_timeout=shutdown_s
        )

    async def _make_server(self) -> web.Server:
        await super()._make_server()  # starts and freezes the application
        return _Server(
            self.app._handle,
            request_factory=self.app._make_request,
            loop=asyncio.get_running_loop(),
            access_log=None,
            logger=_quiet,
            keepalive_timeout=QUIET_S,
            lingering_time=LINGERING_S,
            max_line_size=LINE_MOST,
            max_field_size=LINE_MOST,
            # A body is as long as it says: what a megabyte of gzip becomes is nobody's business.
            auto_decompress=False,
        )


def trust(request: web.Request) -> None:
    """Whoever sent this has shown a key: its connection makes room for nobody."""
    protocol = request.protocol
    if isinstance(protocol, _Connection):
        protocol.strangers.pop(protocol, None)


async def secure(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Put the headers on an answer that is about to be sent."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = SERVER


class _Server(web.Server):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strangers: OrderedDict[_Connection, None] = OrderedDict()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """One client's connection."""

    def __init__(self, server: _Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self.strangers = server.strangers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.strangers[self] = None
        if len(self.strangers) > STRANGERS_MOST:
            oldest, _ = self.strangers.popitem(last=False)
            if oldest.transport is not None:
                oldest.transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.strangers.pop(self, None)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is answered to bytes that are no request: aiohttp's own answer would quote them."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer was sent already")
        self.log_exception("a request could not be read", exc_info=exc)
        if isinstance(exc, LineTooLong):
            error = ApiError(
                431, "head_too_large", f"a line of the head has over {LINE_MOST} bytes"
            )
        elif status < 500:
            error = ApiError(400, "bad_request", "that is not an HTTP request")
        else:
            error = ApiError(
                status, "internal_error", "the control server failed; its log says how"
            )
        response = error.response()
        response.headers.update(SECURITY_HEADERS, Server=SERVER, Connection="close")
        response.force_close()
        return response


class _QuietFilter(logging.Filter):
    """aiohttp logs what it could not parse with the bytes themselves, which may hold a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[0] if record.exc_info else None
        if error is not None and error.__module__.startswith("aiohttp"):
            record.msg, record.args = "a request was not HTTP: %s", (error.__name__,)
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


_quiet = logging.getLogger("haltwire_control.http")
_quiet.addFilter(_QuietFilter())
