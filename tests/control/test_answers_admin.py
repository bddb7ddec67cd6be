"""The other answers: no secret beyond the one time that it is shown."""

from __future__ import annotations

from haltwire_control import answers_admin
from haltwire_control.audit import EventRow


def test_secrets_are_in_what_was_just_made_alone():
    showing = {
        name
        for name, model in vars(answers_admin).items()
        if isinstance(model, type) and "secret" in getattr(model, "model_fields", {})
    }
    assert showing == {"TokenMade", "KeyMade"}


def test_an_event_is_documented_as_it_is_stored():
    fields = set(EventRow.__dataclass_fields__)
    assert set(answers_admin.EventDocument.model_fields) == fields
