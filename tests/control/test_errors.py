"""Every error that a caller can cause has its status, code and sentence."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from haltwire_control.errors import ApiError, api_error, invalid_field
from haltwire_control.ledger import TooManyInstancesError
from haltwire_control.state import ConflictError, NotThereError
from haltwire_control.store import StoreError

CASES = {
    "not there": (NotThereError("no K1"), 404, "not_found", False),
    "a conflict": (ConflictError("taken"), 409, "conflict", False),
    "too many": (TooManyInstancesError("full"), 429, "too_many_instances", False),
    "a store that fails": (StoreError("disk"), 503, "store_unavailable", True),
    "no route": (web.HTTPNotFound(), 404, "not_found", False),
    "no method": (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405, "method_not_allowed", False),
    "a big body": (web.HTTPRequestEntityTooLarge(1, 2), 413, "body_too_large", False),
    "an odd one": (web.HTTPExpectationFailed(), 417, "bad_request", False),
    "an unreadable body": (web.RequestPayloadError("gzip"), 400, "bad_request", False),
    "itself": (invalid_field("reason", "too long"), 422, "invalid_field", False),
}


@pytest.mark.parametrize(("error", "status", "code", "retryable"), CASES.values(), ids=CASES)
def test_an_error_has_one_answer(error, status, code, retryable):
    answer = api_error(error).response()
    document = json.loads(answer.body)["error"]
    assert (answer.status, document["code"], document["retryable"]) == (status, code, retryable)
    assert document["message"]


def test_allowed_methods_are_told():
    answer = api_error(web.HTTPMethodNotAllowed("PUT", ["GET"])).response()
    assert answer.headers["Allow"] == "GET"


def test_a_fault_of_our_own_has_none():
    assert api_error(KeyError("x")) is None


def test_facts_can_stand_beside_an_error():
    error = ApiError(503, "kill_not_durable", "not stored", beside={"ok": False})
    assert json.loads(error.response().body)["ok"] is False
