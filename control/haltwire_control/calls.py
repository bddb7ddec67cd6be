"""One call of the API, from the request to who asks and what: authenticate, authorise, then read."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ValidationError

from haltwire_control.attempts import AGENT_BURST, AGENT_PER_S, Buckets, FailedAttempts
from haltwire_control.auth import AGENT, Caller, caller_of, digest_of, holds_secret, may
from haltwire_control.errors import ApiError
from haltwire_control.idempotency import Once, once_of
from haltwire_control.perimeter import trust
from haltwire_control.service import Service, now
from haltwire_control.state import Actor

BODY_LIMIT = 1024 * 1024
BODY_WITHIN_S = 10.0
ANYBODY = Caller("anybody", Actor("anybody"))
"Who calls an open route."
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="haltwire"'}


@dataclass(slots=True)
class Call:
    """A call that may be made."""

    request: web.Request
    arrived: float
    "On the monotonic clock."
    caller: Caller
    body: Any = None
    "An instance of the route's body model."
    query: Any = None
    "An instance of the route's query model."
    once: Once | None = None
    "What the Idempotency-Key of a write makes of it."


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route, as it is served and as it is documented."""

    method: str
    path: str
    handler: Handler
    summary: str
    action: str | None = None
    "What the caller's role must allow; None lets everybody."
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | str | None = None
    "The model of the answer, or its content type."
    status: int = 200
    writes: bool = False
    "Whether it takes an Idempotency-Key."
    errors: tuple[int, ...] = field(default=())


class Gatekeeper:
    """Turns requests into calls."""

    def __init__(self, service: Service, local_proxy_key: str) -> None:
        self._service = service
        self._local_proxy_digest = digest_of(local_proxy_key) if local_proxy_key else ""
        self._failed = FailedAttempts()
        self._agents = Buckets(AGENT_BURST, AGENT_PER_S)

    async def admit(self, route: Route, request: web.Request) -> Call:
        """The call; ApiError when it may not be made or makes no sense."""
        call = Call(request, time.monotonic(), ANYBODY)
        if holds_secret(request.rel_url.path) or holds_secret(request.rel_url.query_string):
            raise ApiError(
                400,
                "secret_in_url",
                "a key or token never goes into a URL, which is logged on its way: revoke it, and send the next one in a header",
            )
        if route.action is not None:
            call.caller = self._authenticate(request, call.arrived)
            if not may(call.caller.role, route.action):
                raise ApiError(
                    403,
                    "not_allowed",
                    f"the role {call.caller.role} may not {route.action}: {request.method} {route.path}",
                )
        if route.query is not None:
            call.query = _validate(route.query, _plain_query(request))
        elif request.query_string:
            raise ApiError(422, "invalid_field", "this route takes no query")
        document: Any = None
        if route.body is not None:
            document = await _document(request)
            call.body = _validate(route.body, document)
        if route.writes:
            call.once = _once(request, call.caller.actor, document)
        return call

    def _authenticate(self, request: web.Request, now: float) -> Caller:
        secret = _secret_of(request)
        if not secret:
            raise ApiError(
                401,
                "credentials_required",
                "send Authorization: Bearer KEY, or x-api-key: KEY",
                headers=CHALLENGE,
            )
        caller = caller_of(secret, self._service.state, self._local_proxy_digest)
        if caller is None:
            wait_s = self._failed.failed(request.remote or "", now)
            if wait_s is not None:
                raise ApiError(
                    429,
                    "too_many_failures",
                    "this address has shown too many keys that are not known; one that is known works at once",
                    retryable=True,
                    headers={"Retry-After": str(wait_s)},
                )
            raise ApiError(
                401,
                "credentials_invalid",
                "this key or token is not known, or was revoked",
                headers=CHALLENGE,
            )
        if caller.role != AGENT:
            trust(request)
        elif caller.token is not None:
            self._pace(caller.token.token_id, now)
        return caller

    def _pace(self, token_id: str, now: float) -> None:
        # Before the body is read: what floods us must not cost what an honest call costs.
        wait_s = self._agents.count(token_id, now)
        if wait_s is not None:
            raise ApiError(
                429,
                "rate_exceeded",
                f"this token calls more than {AGENT_PER_S:g} times a second: beat less often",
                retryable=True,
                headers={"Retry-After": str(wait_s)},
            )


def _secret_of(request: web.Request) -> str:
    shown = request.headers.getall("Authorization", ())
    if len(shown) > 1 or len(request.headers.getall("x-api-key", ())) > 1:
        raise ApiError(400, "credentials_ambiguous", "send one key, once")
    scheme, _, secret = (shown[0] if shown else "").partition(" ")
    key = request.headers.get("x-api-key", "").strip()
    if scheme.lower() != "bearer":
        return key
    if key and key != secret.strip():
        raise ApiError(400, "credentials_ambiguous", "send one key, once")
    return secret.strip()


def _once(request: web.Request, actor: Actor, document: Any) -> Once | None:
    keys = request.headers.getall("Idempotency-Key", ())
    if not keys:
        return None
    try:
        if len(keys) > 1:
            raise ValueError("send one Idempotency-Key, once")
        return once_of(keys[0], actor, request.method, request.rel_url.path, document, now())
    except ValueError as error:
        raise ApiError(400, "invalid_idempotency_key", str(error)) from error


def _plain_query(request: web.Request) -> dict[str, str]:
    names = [name for name, _ in request.query.items()]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ApiError(422, "invalid_field", f"{repeated[:64]}: given more than once")
    return dict(request.query)


async def _document(request: web.Request) -> Any:
    # Any Content-Type will do: `curl -d` says x-www-form-urlencoded, and no key comes with a browser's form.
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(415, "unsupported_encoding", "send the body as it is, not compressed")
    if (request.content_length or 0) > BODY_LIMIT:
        raise web.HTTPRequestEntityTooLarge(BODY_LIMIT, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            raw = await request.read()
    except TimeoutError as error:
        raise ApiError(
            408,
            "body_too_slow",
            f"the body did not come within {BODY_WITHIN_S:g} s",
            retryable=True,
            headers={"Connection": "close"},
        ) from error
    except (
        ConnectionError
    ) as error:  # nobody is left to read this; a traceback each would fill the log
        raise ApiError(
            400, "body_incomplete", "the client went before its body was whole"
        ) from error
    if not raw.strip():
        return {}
    if holds_secret(raw):
        raise ApiError(
            422,
            "secret_in_body",
            "the body holds a key or token, which others could read in it: send it without",
        )
    try:
        document = json.loads(raw, parse_constant=_no_constant, parse_float=_finite)
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", "the body is not JSON") from error
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    # 1e400 would be read as infinity, and every receipt that repeats it would be no JSON.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _validate(model: type[BaseModel], document: Any) -> BaseModel:
    if not isinstance(document, dict):
        raise ApiError(422, "invalid_field", "the body: an object is needed")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"][:4]) or "the body"
        raise ApiError(422, "invalid_field", f"{where}: {_sentence(first)}") from error


def _sentence(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown field"
    message: str = problem["msg"]
    return message.removeprefix("Value error, ")
