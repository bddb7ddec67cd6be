"""The route table: who may call what, and nothing of a later day."""

from __future__ import annotations

import pytest

ROUTES = {
    ("POST", "/v1/mesh/heartbeat"): "heartbeat",
    ("GET", "/v1/mesh/agents"): "read",
    ("GET", "/v1/mesh/agents/{agent}"): "read",
    ("POST", "/v1/mesh/agents/{agent}/kill"): "kill",
    ("POST", "/v1/mesh/agents/{agent}/resume"): "kill",
    ("POST", "/v1/mesh/kill"): "kill",
    ("POST", "/v1/mesh/resume"): "kill",
    ("GET", "/v1/mesh/kills"): "read",
    ("GET", "/v1/mesh/kills/{kill_id}"): "read",
    ("POST", "/v1/mesh/kills/{kill_id}/notes"): "kill",
    ("GET", "/v1/mesh/events"): "read",
    ("GET", "/v1/mesh/audit/verify"): "read",
    ("GET", "/v1/mesh/audit/export"): "read",
    ("POST", "/v1/tokens"): "administer",
    ("GET", "/v1/tokens"): "administer",
    ("DELETE", "/v1/tokens/{token_id}"): "administer",
    ("POST", "/v1/keys"): "administer",
    ("GET", "/v1/keys"): "administer",
    ("DELETE", "/v1/keys/{key}"): "administer",
    ("GET", "/v1/proxies"): "read",
    ("GET", "/v1/proxies/connect"): "connect",
    ("GET", "/v1/recovery"): "read",
    ("POST", "/v1/recovery/accept"): "administer",
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/health"): None,
    ("GET", "/metrics"): None,
    ("GET", "/ca.pem"): None,
    ("GET", "/ca-bundle.pem"): None,
    ("GET", "/openapi.json"): None,
}


async def test_these_are_the_routes(control):
    assert {(r.method, r.path): r.action for r in control.routes} == ROUTES


NOT_YET = ["/v1/switch", "/v1/policies/x", "/v1/mesh/wait", "/v1/mesh/checkpoint", "/"]


@pytest.mark.parametrize("path", NOT_YET)
async def test_what_is_not_there_is_404(control, path):
    reply = await control.call("GET", path)
    assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")


async def test_another_method_is_405(control):
    reply = await control.call("PUT", "/v1/mesh/kill")
    assert (reply.status, reply.body["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["Allow"] == "POST"
