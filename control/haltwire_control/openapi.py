"""The OpenAPI 3.1 document, made from the route table: what is served is what is written, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from haltwire_control.answers import ErrorAnswer
from haltwire_control.calls import Route
from haltwire_control.idempotency import LONGEST

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{model}"
_EXAMPLES = {"agent": "agent://acme/prod/mailer"}
_LINKS = {
    "create_token": (("revoke_token", "token_id", "token_id"),),
    "create_key": (("revoke_key", "key", "key_id"),),
    "kill_selector": (("show_kill", "kill_id", "kill_id"), ("note_kill", "kill_id", "kill_id")),
}
"What can be called next with a field of an answer: the call, its parameter, the field."
_DESCRIPTIONS = {
    "agent": "The agent's URI, percent-encoded or as it is, or its dotted label; `~INSTANCE` may follow.",
    "kill_id": "The id of a kill.",
    "token_id": "The id of a token.",
    "key": "The id or name of a key.",
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A name of your own for this write: asked for again under it within 24 hours, it is not done twice.",
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST},
}


def openapi(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The document for these routes."""
    routes = tuple(routes)
    models = _models(routes)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF
    )
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "haltwire",
            "version": version,
            "description": "Stops AI agents at the network, whatever their code does.",
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _models(routes: Iterable[Route]) -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {ErrorAnswer: None}
    for route in routes:
        for model in (route.body, route.answer):
            if isinstance(model, type):
                found[model] = None
    return list(found)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "parameters": [
            *_path_parameters(route),
            *_query_parameters(route),
            *([_IDEMPOTENCY_KEY] if route.writes else []),
        ],
        "responses": _responses(route),
    }
    if route.action is not None:
        operation["security"] = [{"bearer": []}, {"key": []}]
    if route.body is not None:
        required = any(f.is_required() for f in route.body.model_fields.values())
        operation["requestBody"] = {"required": required, "content": _content(route.body)}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _DESCRIPTIONS[name],
            "schema": {"type": "string"},
            **({"example": _EXAMPLES[name]} if name in _EXAMPLES else {}),
        }
        for name in _PARAMETER.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    properties = route.query.model_json_schema(ref_template=_REF)["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {k: v for k, v in schema.items() if k != "description"},
            **({"description": schema["description"]} if "description" in schema else {}),
        }
        for name, schema in properties.items()
    ]


def _responses(route: Route) -> dict[str, Any]:
    # Of any call: a secret in the URL, a query that the route does not take.
    codes = {*route.errors, 400, 422}
    if route.action is not None:
        codes |= {401, 403, 429}
    if route.body is not None:
        codes |= {408, 413, 415}
    if 503 in codes and route.action is not None:
        codes |= {507}
    good: dict[str, Any] = {"description": HTTPStatus(route.status).phrase}
    if route.answer is not None:
        good["content"] = _content(route.answer)
    links = {
        called: {"operationId": called, "parameters": {parameter: f"$response.body#/{field}"}}
        for called, parameter, field in _LINKS.get(route.handler.__name__, ())
    }
    if links:
        good["links"] = links
    errors = {
        str(code): {"description": HTTPStatus(code).phrase, "content": _content(ErrorAnswer)}
        for code in sorted(codes)
    }
    return {str(route.status): good, **errors}


def _content(model: type[BaseModel] | str) -> dict[str, Any]:
    if isinstance(model, str):
        return {model: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}
