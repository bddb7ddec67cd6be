"""haltwire.internal: the agent's own calls, answered before the gate, so also for killed agents.

Calls are relayed to the control server with the agent's own secret and nothing more: the control
server judges them as it would a direct call. Operator calls do not exist here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp
import httptools
from haltwire.wire.refusals import Refusal

from haltwire_proxy.enforcer import failed
from haltwire_proxy.faults import FailClosed
from haltwire_proxy.identity import Identity
from haltwire_proxy.refuse import response_bytes
from haltwire_proxy.transport import close_gracefully

HOST = "haltwire.internal"
MAX_BODY_BYTES = 1024 * 1024
MAX_CALL_BYTES = MAX_BODY_BYTES + 256 * 1024
"Of a call as it comes, with its head and what frames its body."
MAX_PIECES = 4096
"In which a body may come: a megabyte in chunks of one byte would keep the loop for a tenth of a second."
_SLICE_BYTES = 16 * 1024
"What is parsed before the bounds are looked at again."
SESSION_TIMEOUT_S = 30.0
_RELAY_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=3)
_RELAYED = frozenset({("POST", "/v1/mesh/heartbeat")})


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the agent API."""

    status: int
    content_type: str
    body: bytes

    def to_bytes(self, *, head: bool = False) -> bytes:
        """The response on the wire; the connection ends with it."""
        text = (
            f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, 'Answer')}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return text.encode("latin-1") + (b"" if head else self.body)


_TOO_LARGE = Refusal("request_too_large", "A call's body is at most 1 MiB.")
_PHRASES = {200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 422: "Invalid"}


class AgentApi:
    """Answers calls to haltwire.internal; shared by all connections of a worker."""

    def __init__(self, session: aiohttp.ClientSession, control_url: str, ca_file: Path) -> None:
        self._session = session
        self._control_url = control_url.rstrip("/")
        self._ca_file = ca_file
        self.sessions: set[AgentApiSession] = set()

    def adopt(self, transport: asyncio.Transport, identity: Identity, early: bytes) -> None:
        """Take over a client's transport; `early` is what has been read of it: a whole head, and more."""
        session = AgentApiSession(self, identity)
        transport.set_protocol(session)
        session.connection_made(transport)
        if early:
            session.data_received(early)

    async def answer(self, identity: Identity, method: str, path: str, body: bytes) -> Answer:
        """Answer one call as this agent."""
        plain = path.partition("?")[0]
        if (method, plain) == ("GET", "/ca.pem"):
            return Answer(200, "application/x-pem-file", self._ca_file.read_bytes())
        if (method, plain) not in _RELAYED:
            return _refused(
                Refusal(
                    "not_found", f"http://{HOST} has no such call for agents; see /openapi.json."
                )
            )
        headers = {
            "Authorization": f"Bearer {identity.secret}",
            "X-Agent-URI": str(identity.agent),
            "X-Agent-Instance": identity.instance,
            "Content-Type": "application/json",
        }
        try:
            async with self._session.request(
                method,
                self._control_url + plain,
                data=body,
                headers=headers,
                timeout=_RELAY_TIMEOUT,
                allow_redirects=False,
            ) as response:
                return Answer(response.status, "application/json", await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return _refused(
                Refusal(
                    "control_unreachable", "The control server does not answer. Try again later."
                )
            )


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, "application/json", refusal.body())


class AgentApiSession(asyncio.Protocol):
    """One call on a connection of its own: read whole, answered, closed."""

    def __init__(self, api: AgentApi, identity: Identity) -> None:
        self.agent = identity.agent
        self._api = api
        self._identity = identity
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._body = bytearray()
        self._received = self._pieces = 0
        self._expects = False
        self._done = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The door has handed the connection over."""
        self._transport = cast("asyncio.Transport", transport)
        self._api.sessions.add(self)
        self._timer = asyncio.get_running_loop().call_later(SESSION_TIMEOUT_S, self.close)

    def data_received(self, data: bytes) -> None:
        """Bytes of the call; anything behind it is dropped."""
        with FailClosed("the agent API failed", self._fail):
            try:
                for at in range(0, len(data), _SLICE_BYTES):
                    if self._done:
                        return
                    self._take(data[at : at + _SLICE_BYTES])
            except httptools.HttpParserCallbackError as fault:
                raise RuntimeError("a call could not be collected") from fault  # our own doing
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._refuse(Refusal("malformed_request", "That is not an HTTP/1.1 request."))

    def _take(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_CALL_BYTES or self._pieces > MAX_PIECES:
            self._refuse(_TOO_LARGE)
        else:
            self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._transport = None
        self._done = True
        self._api.sessions.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """End the session."""
        if self._transport is not None:
            close_gracefully(self._transport)

    # httptools calls these.

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field: only the wish for 100 matters, who calls is known."""
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        """The head is read."""
        if self._expects and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of the body, bounded."""
        if self._done:
            return
        self._body += body
        self._pieces += 1
        if len(self._body) > MAX_BODY_BYTES:
            self._refuse(_TOO_LARGE)

    def on_message_complete(self) -> None:
        """The call is whole."""
        if self._done or self._task is not None:
            return
        method = self._parser.get_method().decode("ascii")
        target = self._target.decode("latin-1")
        if "://" in target:
            target = "/" + target.partition("://")[2].partition("/")[2]
        self._done = True
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._answer(method, target), name="agent api")

    async def _answer(self, method: str, path: str) -> None:
        with FailClosed("the agent API failed", self._fail):
            answer = await self._api.answer(self._identity, method, path, bytes(self._body))
            self._send(answer.to_bytes(head=method == "HEAD"))

    def _fail(self) -> None:
        with FailClosed("a fault could not be answered", self._abort):
            self._refuse(failed())

    def _refuse(self, refusal: Refusal) -> None:
        self._done = True
        self._send(response_bytes(refusal, close=True))

    def _send(self, answer: bytes) -> None:
        if self._transport is not None:
            # Whatever fails from here on, no second answer may follow this one.
            with FailClosed("an answer could not be sent", self._abort):
                self._transport.write(answer)
                self.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
