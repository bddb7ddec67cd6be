"""The OpenAPI document is valid and says what is served, no more and no less."""

from __future__ import annotations

import pytest
from haltwire_control.calls import Route
from haltwire_control.models import KillSelectorBody
from haltwire_control.openapi import openapi
from openapi_spec_validator import OpenAPIV31SpecValidator


@pytest.fixture
async def document(control):
    return (await control.call("GET", "/openapi.json", key=None)).body


async def test_it_is_valid(document):
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")


async def test_it_lists_exactly_the_routes_that_are_served(control, document):
    written = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    served = {
        (route.method, route.resource.canonical)
        for route in control.app.router.routes()
        if route.method != "HEAD"
    }
    assert written == served


async def test_what_needs_a_key_says_so(document):
    open_paths = {
        path
        for path, item in document["paths"].items()
        for op in item.values()
        if "security" not in op
    }
    assert open_paths == {
        "/healthz",
        "/readyz",
        "/health",
        "/metrics",
        "/ca.pem",
        "/ca-bundle.pem",
        "/openapi.json",
    }


async def test_names_of_operations_are_unique(document):
    names = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(names) == len(set(names))


async def kill_things(_call):
    raise NotImplementedError


def test_a_body_with_a_required_field_is_required():
    route = Route("POST", "/v1/x/{agent}", kill_things, "Kill", "kill", body=KillSelectorBody)
    operation = openapi([route], "1")["paths"]["/v1/x/{agent}"]["post"]
    assert operation["requestBody"]["required"] is True
    assert {"400", "401", "403", "413", "422"} <= set(operation["responses"])
    assert operation["parameters"][0]["name"] == "agent"


async def test_links_lead_to_routes_that_take_them(control):
    document = (await control.call("GET", "/openapi.json")).body
    operations = {o["operationId"]: o for path in document["paths"].values() for o in path.values()}
    links = [
        (link, next(iter(answer["content"].values()))["schema"]["$ref"].rpartition("/")[2])
        for operation in operations.values()
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert len(links) == 4
    for link, model in links:
        ((name, expression),) = link["parameters"].items()
        assert name in [p["name"] for p in operations[link["operationId"]]["parameters"]]
        field = expression.removeprefix("$response.body#/")
        assert field in document["components"]["schemas"][model]["properties"]
