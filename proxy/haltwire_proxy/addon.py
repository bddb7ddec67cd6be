"""The addon: mitmproxy's hooks, in the order in which they fire, and nothing else of mitmproxy's.

Every hook refuses when it fails. What it decides with is `Enforcer.decide`; whose connection it is
was settled at the door and hangs on the client connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from haltwire.wire.refusals import Refusal
from mitmproxy import http, tcp

from haltwire_proxy import overload
from haltwire_proxy.agent_api import HOST, AgentApi
from haltwire_proxy.connections import Connection
from haltwire_proxy.enforcer import Enforcer, failed
from haltwire_proxy.exchanges import Exchange, Side
from haltwire_proxy.gate import Held
from haltwire_proxy.hops import forwarded
from haltwire_proxy.identity import agrees
from haltwire_proxy.one_authority import another_sni

log = logging.getLogger(__name__)
_REFUSAL = "haltwire.refusal"
_EXCHANGE = "haltwire.exchange"
_ANSWERED = "haltwire.answered"
_KEEPS = "haltwire.keeps"
_AGENT_API = "haltwire.agent_api"
_WAIT = "haltwire.wait"
_WRONG = "haltwire.wrong"
MISMATCHES = frozenset(
    {
        "proxy_credentials_invalid",
        "identity_mismatch",
        "identity_switched",
        "authority_mismatch",
    }
)
"Refusals of a later request that are audited."


def refusal_of(flow: http.HTTPFlow) -> Refusal | None:
    """Why the flow is refused, or None."""
    refusal = flow.metadata.get(_REFUSAL)
    return refusal if isinstance(refusal, Refusal) else None


def note_wrong(flow: http.HTTPFlow, refusal: Refusal) -> None:
    """Note what is wrong with the flow's request as such, before the hooks run."""
    flow.metadata[_WRONG] = refusal


def refusal_response(refusal: Refusal, *, body: bool = True) -> http.Response:
    """A refusal as mitmproxy's response."""
    headers = http.Headers([(n.encode(), v.encode()) for n, v in refusal.headers()])
    response = http.Response.make(refusal.status, refusal.body() if body else b"", headers)
    response.reason = refusal.reason_phrase
    return response


@dataclass(slots=True)
class _Wait:
    """A request that waits for a hold to end."""

    task: asyncio.Task[None] | None = None
    given_up: bool = False


def give_up(flow: http.HTTPFlow) -> None:
    """The client has taken its request back: if it waits, it waits no longer, and goes nowhere."""
    wait = flow.metadata.get(_WAIT)
    if isinstance(wait, _Wait) and not wait.given_up:
        wait.given_up = True
        if wait.task is not None:
            wait.task.cancel()


def has_given_up(flow: http.HTTPFlow) -> bool:
    """Whether the request was taken back while it waited."""
    wait = flow.metadata.get(_WAIT)
    return isinstance(wait, _Wait) and wait.given_up


class Addon:
    """What happens to each request on an inspected connection."""

    def __init__(self, enforcer: Enforcer, agent_api: AgentApi) -> None:
        self._enforcer = enforcer
        self._agent_api = agent_api

    def requestheaders(self, flow: http.HTTPFlow) -> Coroutine[None, None, None] | None:
        """A request head has been read; nothing has gone upstream. Setting a refusal ends it here.

        What is returned is awaited before it goes on: it waits for a hold to end.
        """
        decision = self._decide(flow)
        if not isinstance(decision, Refusal):
            decision = self._crowded(flow) or decision
        if isinstance(decision, Held):
            flow.metadata[_WAIT] = wait = _Wait()
            return self._wait(flow, wait)
        self._settle(flow, decision)
        return None

    def request(self, flow: http.HTTPFlow) -> Coroutine[None, None, None] | None:
        """The whole request has been read. What is returned is awaited before it goes on."""
        if _AGENT_API in flow.metadata:
            return self._call(flow)
        trailers = flow.request.trailers
        if trailers is not None:
            trailers.fields = forwarded(trailers.fields)
        exchange = flow.metadata.get(_EXCHANGE)
        if exchange is not None:
            exchange.request_complete = True
            complete(flow)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """A response head has been read: pass the body on as it comes."""
        exchange = flow.metadata.get(_EXCHANGE)
        if exchange is not None and flow.response is not None:
            limit = overload.head(self._enforcer.limits, flow.response.headers.fields)
            if limit is not None:
                self._enforcer.tallies.count(f"limit.{limit}")
                flow.metadata[_REFUSAL] = Refusal(
                    "upstream_unreachable", f"{flow.request.host} sent too large a response head."
                )
                return
            exchange.answered_at = self._enforcer.now()
            flow.response.stream = self._answering(exchange)
            flow.response.headers.pop("alt-svc", None)  # HTTP/3 would go around us

    def response(self, flow: http.HTTPFlow) -> None:
        """The whole response has been read. Its request, or it itself, may still be on its way."""
        exchange = flow.metadata.get(_EXCHANGE)
        if exchange is None:
            return
        if flow.websocket is not None or _is_switching(flow):
            exchange.upgraded = True
        else:
            flow.metadata[_ANSWERED] = True
            complete(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """The request will get no whole response."""
        end(flow)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """A CONNECT inside a connection that is already someone's: never opened."""
        refusal = Refusal("malformed_request", "A CONNECT inside this connection is not possible.")
        flow.response = refusal_response(refusal)
        flow.response.headers["Connection"] = "close"

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """A message has been read and is passed on; mitmproxy would keep it for ever."""
        exchange = flow.metadata.get(_EXCHANGE)
        if flow.websocket is None:
            return
        if exchange is not None:
            for message in flow.websocket.messages:
                name = "bytes_up" if message.from_client else "bytes_down"
                setattr(exchange, name, getattr(exchange, name) + len(message.content))
        flow.websocket.messages.clear()

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """Bytes behind an upgrade to something else have been read; mitmproxy would keep them too."""
        flow.messages.clear()

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """The WebSocket has been closed."""
        end(flow)

    async def _wait(self, flow: http.HTTPFlow, wait: _Wait) -> None:
        # Everything is judged again afterwards: orders, tokens and the connection may all have changed.
        owned, connections = _owner(flow), self._enforcer.connections
        wait.task = asyncio.current_task()
        load = owned.load
        load.requests += 1
        decision: Refusal | Held | None = None
        try:
            while not wait.given_up:
                decision = await self._enforcer.admission(owned)
                if decision is None:
                    decision = self._decide(flow)
                if not isinstance(decision, Held):
                    break
        except asyncio.CancelledError:
            # A connection that is forgotten has been counted as a whole.
            if not wait.given_up or wait.task is None or wait.task.uncancel():
                raise
        except Exception:
            log.exception("a held request failed")
            decision = failed()
        finally:
            load.requests -= 1
        wait.task = None
        if not wait.given_up:
            self._settle(flow, decision)
        elif owned in connections.held:
            connections.on_lost(owned)

    def _decide(self, flow: http.HTTPFlow) -> Refusal | Held | None:
        try:
            return self._judge(flow)
        except Exception:
            log.exception("the hook requestheaders failed")
            return failed()

    def _settle(self, flow: http.HTTPFlow, decision: Refusal | Held | None) -> None:
        owned, request = _owner(flow), flow.request
        if decision is not None:
            refusal = decision if isinstance(decision, Refusal) else failed()
            owned.tally.refused += 1
            self._enforcer.tallies.touch(owned.tally)
            self._enforcer.tallies.count(f"refused.{refusal.code}")
            flow.metadata[_REFUSAL] = refusal
            self._note_mismatch(flow, refusal)
            return
        if _AGENT_API in flow.metadata:
            owned.begin_call()
            return
        request.headers.fields = forwarded(request.headers.fields)
        owned.tally.requests += 1
        self._enforcer.tallies.count("requests")
        self._enforcer.tallies.touch(owned.tally)
        exchange = Exchange(
            method=request.method,
            host=request.host,
            path=request.path.partition("?")[0].partition("#")[0],
            started_at=self._enforcer.now(),
        )
        owned.begin(exchange)
        flow.metadata[_EXCHANGE] = exchange
        request.stream = _sending(exchange)

    def _crowded(self, flow: http.HTTPFlow) -> Refusal | None:
        owned = _owner(flow)
        if _AGENT_API in flow.metadata:
            return overload.call(self._enforcer, self._agent_api, owned.identity)
        return overload.request(self._enforcer, owned)

    def _note_mismatch(self, flow: http.HTTPFlow, refusal: Refusal) -> None:
        # As at the door: who holds one secret may not try others in the shelter of its connection.
        if refusal.code in MISMATCHES:
            agent_uri = str(_owner(flow).identity.agent)
            source = flow.client_conn.peername[0]
            self._enforcer.tallies.mismatch(source, refusal.code, agent_uri)

    def _judge(self, flow: http.HTTPFlow) -> Refusal | Held | None:
        owned, request = _owner(flow), flow.request
        tokens = self._enforcer.tokens
        if tokens is None or owned.severed:
            return failed()
        fields = request.headers.fields
        limit = overload.head(self._enforcer.limits, fields, request.data.path)
        if limit is not None:
            return overload.exceeded(limit, self._enforcer.tallies)
        wrong: Refusal | None = flow.metadata.get(_WRONG)
        misdirected = another_sni(flow.client_conn.sni, owned.host)
        if wrong is not None and wrong.code != "authority_mismatch" and misdirected is None:
            return wrong
        refusal = agrees(
            fields,
            owned.identity,
            tokens,
            flow.client_conn.peername[0],
            credentials_required=owned.kind == "plain",
        )
        if refusal is None and owned.kind == "plain" and request.host == HOST and wrong is None:
            if request.port != 80:
                return Refusal("destination_denied", f"Use http://{HOST}/, without TLS.")
            flow.metadata[_AGENT_API] = True
            return None
        if refusal is not None:
            return refusal
        decision = self._enforcer.decide(owned.identity)
        if isinstance(decision, Refusal):
            return decision
        return misdirected or wrong or decision

    def _answering(self, exchange: Exchange) -> Callable[[bytes], bytes]:
        def count(data: bytes) -> bytes:
            if data:
                # Before the agent has it: what it reports next has then surely been answered earlier.
                exchange.answered_at = self._enforcer.now()
                exchange.bytes_down += len(data)
            return data

        return count

    async def _call(self, flow: http.HTTPFlow) -> None:
        request, owned = flow.request, _owner(flow)
        try:
            answer = await self._agent_api.answer(
                owned.identity, request.method, request.path, request.raw_content or b""
            )
        finally:
            owned.finish_call()
        fields = {"Content-Type": answer.content_type, "Cache-Control": "no-store"}
        flow.response = http.Response.make(answer.status, answer.body, fields)


def attach(flow: http.HTTPFlow, side: Side, held: Callable[[], int | None] = lambda: 0) -> None:
    """Note over which upstream socket the flow's request is about to go."""
    exchange = flow.metadata.get(_EXCHANGE)
    if exchange is not None and exchange.upstream is None:
        exchange.upstream = side
        exchange.upstream_start = side.written
        exchange.held = held


def passed(flow: http.HTTPFlow) -> None:
    """Note that all of the request that has been read is with its upstream's socket, its end too if it has come."""
    exchange = flow.metadata.get(_EXCHANGE)
    if exchange is None or exchange.upstream is None or exchange.upstream_end is not None:
        return
    if exchange.request_complete and exchange.held() == 0:
        exchange.upstream_end = exchange.upstream.written


def keep_back(flow: http.HTTPFlow, keeps: Callable[[], bool]) -> None:
    """Note how to learn whether some of the response is kept for an HTTP/2 window of the client's."""
    flow.metadata[_KEEPS] = keeps


def complete(flow: http.HTTPFlow) -> None:
    """Count the request, if it has been passed on and answered in full; else ask again later."""
    exchange, owned = flow.metadata.get(_EXCHANGE), _owner(flow)
    keeps = flow.metadata.get(_KEEPS)
    if exchange not in owned.exchanges or not exchange.request_complete:
        return
    if _ANSWERED in flow.metadata and not (keeps and keeps()):
        end(flow)
        owned.tally.complete(exchange.answered_at or exchange.started_at)


def end(flow: http.HTTPFlow) -> None:
    """Nothing of the flow's request or response is under way any more. Idempotent."""
    exchange = flow.metadata.get(_EXCHANGE)
    if exchange is not None:
        _owner(flow).finish(exchange)
    elif _AGENT_API in flow.metadata:
        _owner(flow).finish_call()


def _owner(flow: http.HTTPFlow) -> Connection:
    owned = getattr(flow.client_conn, "owned", None)
    if not isinstance(owned, Connection):
        raise TypeError("a flow without an owner")
    return owned


def _sending(exchange: Exchange) -> Callable[[bytes], bytes]:
    def count(data: bytes) -> bytes:
        exchange.bytes_up += len(data)
        return data

    return count


def _is_switching(flow: http.HTTPFlow) -> bool:
    return flow.response is not None and flow.response.status_code == 101
