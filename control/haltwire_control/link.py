"""The WebSocket of one proxy: its messages in, ours out in order. A slow socket is closed, never skipped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import WSCloseCode, WSMsgType, web
from haltwire.wire import messages
from haltwire.wire.messages import Hello, Message

from haltwire_control.screening import screen

log = logging.getLogger(__name__)
HELLO_WITHIN_S = 5.0
SEND_WITHIN_S = 5.0
QUEUE_LIMIT = 10_000
"Messages waiting for one proxy: many seconds of a storm of kills, and far below what memory holds."
MAX_MESSAGE = 64 * 1024 * 1024
"A report names every instance and up to 1,000 completions of each."


class Link:
    """An open WebSocket; a hub's Outlet."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._why = ""

    def send(self, text: str) -> None:
        """Queue a message behind the earlier ones."""
        if self._queue.qsize() >= QUEUE_LIMIT:
            self.close("too slow")
        elif not self._why:
            self._queue.put_nowait(text)

    def close(self, why: str) -> None:
        """End the link."""
        if not self._why:
            self._why = why
            self._queue.put_nowait(None)

    async def deliver(self) -> None:
        """Send what is queued until the link is closed."""
        try:
            while (text := await self._queue.get()) is not None:
                async with asyncio.timeout(SEND_WITHIN_S):
                    await self._socket.send_str(text)
        except (TimeoutError, ConnectionError) as error:
            self._why = self._why or type(error).__name__
        transport = self._socket.get_extra_info("transport")
        try:
            async with asyncio.timeout(1):
                await self._socket.close(
                    code=WSCloseCode.TRY_AGAIN_LATER, message=self._why.encode()[:100]
                )
        except TimeoutError:
            pass  # a frozen peer closes nothing, so its socket is dropped
        if transport is not None:
            transport.abort()

    async def receive(self, timeout: float) -> Message | None:
        """The next message; None when the link has ended. ValueError when it is not one."""
        message = await self._socket.receive(timeout)
        if message.type is not WSMsgType.TEXT:
            return None
        read = messages.loads(message.data)
        screen(read)
        return read


Serve = Callable[[Link, Hello], Awaitable[None]]
"Follows one proxy from its hello until its link ends."


async def connect(request: web.Request, serve: Serve) -> web.WebSocketResponse:
    """Accept a proxy: a hello first, then whatever `serve` makes of it."""
    socket = web.WebSocketResponse(compress=False, max_msg_size=MAX_MESSAGE)
    await socket.prepare(request)
    link = Link(socket)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.deliver(), name="deliver to a proxy")
        why = "over"
        try:
            hello = await link.receive(HELLO_WITHIN_S)
            if isinstance(hello, Hello):
                await serve(link, hello)
            elif hello is not None:
                why = "a proxy says hello first"
        except TimeoutError:
            why = "silent for too long"
        except ValueError as error:
            why = "not a message"
            log.warning("a proxy sent what is not a message: %s", str(error)[:200])
        except Exception:
            # Only its own link: nothing that one proxy says may cost the others theirs.
            why = "a fault of the control server"
            log.exception("a proxy's message could not be taken")
        finally:
            link.close(why)
    return socket
