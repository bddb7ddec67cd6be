"""The API of a recovery: everybody may look, an admin accepts what was seen."""

from __future__ import annotations

import pytest
from support.control import Worker

LOST = {"revision": 99, "pid": 1, "pid_namespace": "pid:[elsewhere]"}


async def test_without_a_recovery_there_is_nothing_to_accept(control):
    shown = await control.call("GET", "/v1/recovery", key=await control.key("v", "viewer"))
    assert shown.body == {"ok": True, "needed": False, "recovery": None}
    named = {"recovery_id": "R0", "version": 1}
    reply = await control.call("POST", "/v1/recovery/accept", named)
    assert (reply.status, reply.body["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_who_is_no_admin_may_look_and_not_accept(control, role):
    await Worker(control, "w-2", epoch=control.service.state.epoch, **LOST).join()
    key = await control.key("bob", role)
    found = (await control.call("GET", "/v1/recovery", key=key)).body["recovery"]
    named = {"recovery_id": found["recovery_id"], "version": found["version"]}
    assert (await control.call("POST", "/v1/recovery/accept", named, key=key)).status == 403
    assert (await control.call("POST", "/v1/recovery/accept", named)).body["needed"] is False


@pytest.mark.parametrize(
    "body", [{}, {"recovery_id": "R1"}, {"recovery_id": "R1", "version": 0}, {"version": 1}]
)
async def test_which_one_and_how_much_of_it_has_to_be_said(control, body):
    assert (await control.call("POST", "/v1/recovery/accept", body)).status == 422
