"""Identity that cannot be forged, on a real `haltwire up`: rows I01 to I15, each a named case.

Elsewhere: I01 and I02 with real clients are tests/e2e/test_clients.py and test_challenge.py; the whole table
of what is read from a head, I06 and I07 among it, is tests/proxy/test_identity.py; what stays on this hop is
tests/proxy/test_hops.py.

Seen to fail with a protection removed (each put back):
- identify without its `selector.matches_agent`: `I05 label forged` gets 200
- agrees without `_switched`: `I12` gets 200 for the other agent
- forwarded that strips only `is_ours` names without `_dashed`: I10, `x_agent_uri` at the origin
- Guesses.failed that returns 0.0: `the sixth wrong secret waits`
- Mismatches without `_is_full`: more rows than allowed
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

import h2.config
import h2.connection
import pytest
import pytest_asyncio
from haltwire_control.mismatches import KINDS_KEPT
from haltwire_proxy.guesses import FREE
from support.client import Answer, Wire
from support.origin import Origin
from support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = "hwa_" + "x" * 43
SENTINEL = "agent-says-this"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory, authority):
    """One for all; tests name agents of their own."""
    folder = tmp_path_factory.mktemp("hostile") / "data"
    async with System(folder, "--workers", "1", "--upstream-ca", str(authority.ca_file)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origins(authority):
    """In the open, and under TLS."""
    async with Origin() as http, Origin(authority.server_context("localhost")) as https:
        yield http, https


@pytest.fixture(autouse=True)
def fresh(origins):
    for origin in origins:
        origin.connections.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secrets(system):
    """Of agents a and b, of a's instance i-1, of everyone in acme/many, and of a as it is read inside TLS."""
    selectors = {
        "a": "agent://acme/prod/a",
        "b": "agent://acme/prod/b",
        "bound": "agent://acme/prod/a~i-1",
        "many": "agent://acme/many/*",
    }
    made = {name: await system.token(selector) for name, selector in selectors.items()}
    made["read"] = await system.token("agent://acme/prod/read", "intercept")
    return {name: urlsplit(url).password for name, url in made.items()}


def basic(label: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{label}:{secret}".encode()).decode()


def proxy_authorization(label: str, secret: str) -> str:
    return f"Proxy-Authorization: {basic(label, secret)}"


ROWS = {
    "I03 nothing": ([], 407, "proxy_credentials_required"),
    "I03 what is for the origin": (
        ["Authorization: Bearer {a}"],
        407,
        "proxy_credentials_required",
    ),
    "I04 wrong secret, right name": (["{acme.prod.a|wrong}"], 407, "proxy_credentials_invalid"),
    "I04 wrong bearer": (["Proxy-Authorization: Bearer {wrong}"], 407, "proxy_credentials_invalid"),
    "I05 label forged": (["{acme.prod.b|a}"], 407, "identity_mismatch"),
    "I05 header forged": (
        ["{acme.prod.a|a}", "X-Agent-URI: agent://acme/prod/b"],
        407,
        "identity_mismatch",
    ),
    "I05 another instance than the bound one": (
        ["{acme.prod.a~i-2|bound}"],
        407,
        "identity_mismatch",
    ),
    "I05 instance header forged": (
        ["{acme.prod.a|bound}", "X-Agent-Instance: i-2"],
        407,
        "identity_mismatch",
    ),
    "I05 beyond the selector": (["{acme.prod.b|many}"], 407, "identity_mismatch"),
    "I05 a selector, and nobody named": (
        ["Proxy-Authorization: Bearer {many}"],
        407,
        "agent_required",
    ),
    "I06 axios": (["{agent%3A%2F%2Facme%2Fprod%2Fa|a}"], 200, None),
    "I06 encoded twice": (["{acme%252Eprod%252Ea|a}"], 407, "proxy_credentials_invalid"),
    "I07 the last colon splits": (["{agent://acme/prod/a|a}"], 200, None),
    "I07 no colon": (["{a}"], 407, "proxy_credentials_invalid"),
    "I08 two credentials": (["{acme.prod.a|a}", "{acme.prod.b|b}"], 400, "malformed_request"),
    "I08 the same twice": (["{acme.prod.a|a}", "{acme.prod.a|a}"], 400, "malformed_request"),
    "I08 comma-joined": (["Proxy-Authorization: Bearer {a}, Bearer {b}"], 400, "malformed_request"),
    "I08 two names": (
        [
            "{acme.many.c|many}",
            "X-Agent-URI: agent://acme/many/c",
            "X-Agent-URI: agent://acme/many/d",
        ],
        400,
        "malformed_request",
    ),
    "I09 not Base64": (["Proxy-Authorization: Basic !!!!"], 407, "proxy_credentials_invalid"),
    "I09 Base64 without padding": (
        ["Proxy-Authorization: Basic YWNtZS5wcm9kLmE6eA"],
        407,
        "proxy_credentials_invalid",
    ),
    "I09 ten kilobytes": (
        ["Proxy-Authorization: Bearer " + "x" * 10_000],
        407,
        "proxy_credentials_invalid",
    ),
    "I09 NUL": (["Proxy-Authorization: Bearer {a}\0"], 400, "malformed_request"),
    "I09 non-ASCII": (["Proxy-Authorization: Bearer hwa_\xe9"], 407, "proxy_credentials_invalid"),
    "I09 non-ASCII name": (
        ["{acme.prod.a|a}", "X-Agent-URI: agent://acme/prod/\xe9"],
        400,
        "malformed_request",
    ),
    "I09 another scheme": (
        ["Proxy-Authorization: Digest username=a"],
        407,
        "proxy_credentials_invalid",
    ),
    "Bearer": (["Proxy-Authorization: Bearer {a}"], 200, None),
    "X-Agent-URI within the selector": (
        ["Proxy-Authorization: Bearer {many}", "X-Agent-URI: agent://acme/many/c"],
        200,
        None,
    ),
    "an underscore twin names nobody": (
        ["Proxy-Authorization: Bearer {many}", "X_Agent_URI: agent://acme/many/c"],
        407,
        "agent_required",
    ),
    "an underscore twin is no credential": (
        ["Proxy_Authorization: Bearer {a}"],
        407,
        "proxy_credentials_required",
    ),
    "Connection hides no credentials": (
        ["{acme.prod.b|a}", "Connection: Proxy-Authorization, X-Agent-URI"],
        407,
        "identity_mismatch",
    ),
    "Connection takes no credentials away": (
        ["{acme.prod.a|a}", "Connection: Proxy-Authorization"],
        200,
        None,
    ),
}


def spelled(line: str, secrets: dict[str, str]) -> str:
    """`{label|name}` is Basic credentials, `{name}` a secret; a lone `{name}` is Basic without a colon."""
    known = {**secrets, "wrong": WRONG}
    if line.startswith("{"):
        label, _, name = line.strip("{}").rpartition("|")
        secret = known[name]
        if not label:
            return "Proxy-Authorization: Basic " + base64.b64encode(secret.encode()).decode()
        return proxy_authorization(label, secret)
    for name, secret in known.items():
        line = line.replace("{" + name + "}", secret)
    return line


@pytest.mark.parametrize("way", ["CONNECT", "GET"])
@pytest.mark.parametrize("name", ROWS)
async def test_who_is_let_in(system, origins, secrets, name, way):
    headers, status, code = ROWS[name]
    lines = [spelled(line, secrets) for line in headers]
    origin = origins[0]
    target = origin.host if way == "CONNECT" else f"{origin.url}/echo"
    wire = await Wire.open(system.port)
    answer = await wire.request(way, target, f"Host: {origin.host}", *lines)
    assert (answer.status, json.loads(answer.body)["error"] if code else None) == (status, code)
    if status == 407:
        assert answer.headers["proxy-authenticate"] == 'Basic realm="haltwire"'
    if code:
        assert origin.connections == []
        assert not any(word in answer.body.decode() for word in (WRONG, *secrets.values()))
