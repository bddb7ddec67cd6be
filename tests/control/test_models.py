"""What goes in: types as written, limits, nothing unknown."""

from __future__ import annotations

import math

import pytest
from haltwire_control import models
from pydantic import ValidationError


def nested(levels: int) -> dict:
    document: dict = {}
    for _ in range(levels - 1):
        document = {"a": document}
    return document


GOOD = {
    "an empty heartbeat": (models.HeartbeatBody, {}),
    "a full heartbeat": (
        models.HeartbeatBody,
        {
            "agent_uri": "agent://acme/prod/mailer",
            "instance": "i-1",
            "status": "finished",
            "metadata": {"sent": 1, "who": [1, {"x": None}]},
            "metrics": {"latency_ms": 1, "cost_usd": 0.5},
            "interval_s": 10,
        },
    ),
    "metadata at its limit": (models.HeartbeatBody, {"metadata": {"a": "x" * 16_376}}),
    "metadata at its depth": (models.HeartbeatBody, {"metadata": nested(16)}),
    "a kill with nothing said": (models.KillBody, {}),
    "a long reason": (models.KillBody, {"reason": "x" * 1000, "wait_s": 30}),
    "a drain with all it may have": (
        models.KillBody,
        {"grace_s": 86_400, "mode": "drain", "ttl_s": 366 * 86_400, "hold_limit_s": None},
    ),
    "a drain at once": (models.KillBody, {"mode": "drain", "grace_s": 0}),
    "a hold with its limit": (models.KillBody, {"mode": "hold", "hold_limit_s": 0.5}),
    "a rehearsal": (models.KillSelectorBody, {"selector": "agent://**", "dry_run": True}),
    "a note at its length": (models.NoteBody, {"text": "x" * 4000}),
    "a token": (models.TokenBody, {"selector": "agent://a/b", "tls": None}),
    "a key": (models.KeyBody, {"name": "ada@example.com", "role": "viewer"}),
}


@pytest.mark.parametrize(("model", "document"), GOOD.values(), ids=GOOD)
def test_what_is_taken(model, document):
    model.model_validate(document)


BAD = {
    "an unknown field": (models.KillBody, {"grace": 1}, "grace"),
    "a mode of a later day": (models.KillBody, {"mode": "melt"}, "mode"),
    "a mode that is nothing": (models.KillBody, {"mode": None}, "mode"),
    "the grace of a cut": (models.KillBody, {"grace_s": 1}, "grace_s"),
    "the grace of a hold": (models.KillBody, {"grace_s": 0, "mode": "hold"}, "grace_s"),
    "a grace of more than a day": (
        models.KillBody,
        {"mode": "drain", "grace_s": 86_401},
        "grace_s",
    ),
    "a grace before now": (models.KillBody, {"mode": "drain", "grace_s": -1}, "grace_s"),
    "a grace without end": (models.KillBody, {"mode": "drain", "grace_s": math.inf}, "grace_s"),
    "the limit of a drain": (
        models.KillBody,
        {"hold_limit_s": 1, "mode": "drain"},
        "hold_limit_s",
    ),
    "a limit of nothing": (models.KillBody, {"mode": "hold", "hold_limit_s": 0}, "hold_limit_s"),
    "an expiry of nothing": (models.KillBody, {"ttl_s": 0}, "ttl_s"),
    "an expiry in years": (models.KillBody, {"ttl_s": 367 * 86_400}, "ttl_s"),
    "an expiry that is no number": (models.KillBody, {"ttl_s": math.nan}, "ttl_s"),
    "a rehearsal as a word": (models.KillBody, {"dry_run": "yes"}, "dry_run"),
    "a note of nothing": (models.NoteBody, {"text": ""}, "text"),
    "a note without text": (models.NoteBody, {}, "text"),
    "a long note": (models.NoteBody, {"text": "x" * 4001}, "text"),
    "a number in a string": (models.KillBody, {"wait_s": "2"}, "wait_s"),
    "a flag as a number": (models.KillBody, {"wait_s": True}, "wait_s"),
    "a long wait": (models.KillBody, {"wait_s": 31}, "wait_s"),
    "a negative wait": (models.KillBody, {"wait_s": -1}, "wait_s"),
    "a longer reason": (models.KillBody, {"reason": "x" * 1001}, "reason"),
    "a flag as a word": (models.ResumeBody, {"carve_out": "yes"}, "carve_out"),
    "no selector": (models.KillSelectorBody, {}, "selector"),
    "an empty selector": (models.KillSelectorBody, {"selector": ""}, "selector"),
    "metadata beyond its limit": (
        models.HeartbeatBody,
        {"metadata": {"a": "x" * 16_377}},
        "metadata",
    ),
    "bytes count, not characters": (
        models.HeartbeatBody,
        {"metadata": {"a": "é" * 9000}},
        "metadata",
    ),
    "metadata beyond its depth": (models.HeartbeatBody, {"metadata": nested(17)}, "metadata"),
    "metadata far beyond it": (models.HeartbeatBody, {"metadata": nested(900)}, "metadata"),
    "metadata that is a list": (models.HeartbeatBody, {"metadata": []}, "metadata"),
    "a negative metric": (models.HeartbeatBody, {"metrics": {"a": -1}}, "metrics"),
    "a metric without end": (models.HeartbeatBody, {"metrics": {"a": math.inf}}, "metrics"),
    "a metric that is no number": (models.HeartbeatBody, {"metrics": {"a": math.nan}}, "metrics"),
    "too many metrics": (
        models.HeartbeatBody,
        {"metrics": {str(n): 1 for n in range(65)}},
        "metrics",
    ),
    "an interval of nothing": (models.HeartbeatBody, {"interval_s": 0}, "interval_s"),
    "a status in capitals": (models.HeartbeatBody, {"status": "BUSY"}, "status"),
    "a name like an id": (models.KeyBody, {"name": "Y0123456789AB", "role": "viewer"}, "name"),
    "a name with a slash": (models.KeyBody, {"name": "a/b", "role": "viewer"}, "name"),
    "a role of agents": (models.KeyBody, {"name": "ada", "role": "agent"}, "role"),
    "too many agents": (models.AgentsQuery, {"limit": "10001"}, "limit"),
    "a seq beyond a seq": (models.EventsQuery, {"after": str(2**63)}, "after"),
    "a poll for too long": (models.EventsQuery, {"follow_s": "26"}, "follow_s"),
}


@pytest.mark.parametrize(("model", "document", "field"), BAD.values(), ids=BAD)
def test_what_is_refused_names_its_field(model, document, field):
    with pytest.raises(ValidationError) as refused:
        model.model_validate(document)
    assert refused.value.errors()[0]["loc"][0] == field


def test_a_query_is_text():
    query = models.EventsQuery.model_validate({"after": "7", "follow_s": "1.5"})
    assert (query.after, query.follow_s) == (7, 1.5)
    assert models.KillsQuery.model_validate({"all": "1"}).all is True
