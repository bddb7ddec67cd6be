"""What the API answers when it does not do what it was asked: one class, one table of causes.

ApiError          raised by whoever knows the answer
others            mapped by `api_error`: NotThereError 404, ConflictError 409, StoreError 503, ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from haltwire_control.idempotency import AlreadyDoneError, KeyReusedError
from haltwire_control.ledger import TooManyInstancesError
from haltwire_control.state import ConflictError, NotThereError, RecoveryNeededError
from haltwire_control.store import StoreError, StoreFullError


class ApiError(Exception):
    """An answer that is not the one asked for: status, stable code, a sentence, whether a retry can help."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retryable = retryable
        self.headers = dict(headers or {})
        self.beside = dict(beside or {})
        "Fields beside `error`: a kill that could not be stored still has a receipt."

    def response(self) -> web.Response:
        """The answer as HTTP."""
        error = {"code": self.code, "message": self.message, "retryable": self.retryable}
        return web.json_response(
            {"error": error, **self.beside},
            status=self.status,
            headers=self.headers,
            dumps=json.dumps,
        )


_CAUSES: dict[type[Exception], tuple[int, str, bool]] = {
    NotThereError: (404, "not_found", False),
    ConflictError: (409, "conflict", False),
    AlreadyDoneError: (409, "already_done", False),
    KeyReusedError: (422, "idempotency_key_reused", False),
    TooManyInstancesError: (429, "too_many_instances", False),
    RecoveryNeededError: (503, "recovery_needed", False),
    StoreFullError: (507, "store_full", True),
    StoreError: (503, "store_unavailable", True),
}
_UNREADABLE = "the body is not what its Content-Encoding or length says"
_HTTP = {
    404: ("not_found", "there is no such route; see /openapi.json"),
    405: ("method_not_allowed", "the route has no such method; see /openapi.json"),
    413: ("body_too_large", "a body is at most 1 MiB"),
}


def api_error(error: Exception) -> ApiError | None:
    """The answer for an error that has one; None for a fault of our own."""
    if isinstance(error, ApiError):
        return error
    for cause, (status, code, retryable) in _CAUSES.items():
        if isinstance(error, cause):
            return ApiError(status, code, str(error), retryable=retryable)
    if isinstance(error, web.RequestPayloadError):
        # Where its next request would begin is not known either.
        return ApiError(400, "bad_request", _UNREADABLE, headers={"Connection": "close"})
    if isinstance(error, web.HTTPException):
        code, message = _HTTP.get(error.status, ("bad_request", "that is not a request we know"))
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return ApiError(error.status, code, message, headers=allow)
    return None


def invalid_field(field: str, message: str) -> ApiError:
    """The answer when a field does not fit; `message` must not quote a secret."""
    return ApiError(422, "invalid_field", f"{field}: {message}")
