"""Whether a request may pass: one view, one identity, one decision.

Not knowing is not allowing: whatever raises on the way here, the caller answers 503.
"""

from __future__ import annotations

from dataclasses import dataclass

from haltwire.wire.orders import HOLD, Kill
from haltwire.wire.refusals import Refusal, killed

from haltwire_proxy.identity import Identity
from haltwire_proxy.replica import View


@dataclass(frozen=True, slots=True)
class Held:
    """The request has to wait until the order is lifted or becomes a stronger one."""

    kill: Kill | None
    "None: it is the lease that is waited for."


def decide(
    view: View, identity: Identity, lease_left_s: float, *, waits: bool = False
) -> Refusal | Held | None:
    """Why this identity may not send now, or None when it may.

    Checked in this order: the lease is fresh, or is `waits`-ed for; the token is still good; no order
    stops the instance.
    """
    agent_uri = str(identity.agent)
    if not lease_left_s > 0:  # a NaN has no lease either
        if waits:
            return Held(None)
        return Refusal(
            "enforcement_unknown",
            "This proxy has lost its control server and cannot know who is stopped. Try again soon.",
            agent_uri,
            identity.instance,
        )
    if identity.token_id not in view.token_ids:
        return Refusal(
            "proxy_credentials_invalid",
            "The agent token was revoked.",
            agent_uri,
            identity.instance,
        )
    kill = view.deciding(identity.agent, identity.instance)
    if kill is None:
        return None
    return Held(kill) if kill.mode == HOLD else killed(kill, agent_uri, identity.instance)
