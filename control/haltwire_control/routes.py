"""The route table: every route that exists, with who may call it and what goes in and out.

Order matters where paths overlap: `{agent}` takes whatever is left, slashes too, so `/kill` and
`/resume` behind it are matched first and the agent alone comes last.
"""

from __future__ import annotations

from haltwire_control import answers, answers_admin, models
from haltwire_control.admin_api import AdminApi
from haltwire_control.agents_api import AgentsApi
from haltwire_control.api import Api
from haltwire_control.auth import ADMINISTER, CONNECT, HEARTBEAT, KILL, READ
from haltwire_control.calls import Route
from haltwire_control.events import EventsApi
from haltwire_control.public_api import PublicApi

_PEM = "application/x-pem-file"


def route_table(
    agents: AgentsApi, api: Api, admin: AdminApi, events: EventsApi, public: PublicApi
) -> list[Route]:
    """All routes."""
    mesh, agent = "/v1/mesh", "/v1/mesh/agents/{agent}"
    return [
        Route(
            "POST",
            f"{mesh}/heartbeat",
            agents.heartbeat,
            "Say that an agent lives, and how far it is",
            HEARTBEAT,
            body=models.HeartbeatBody,
            answer=answers.HeartbeatAnswer,
            errors=(429,),
        ),
        Route(
            "GET",
            f"{mesh}/agents",
            api.list_agents,
            "List agents",
            READ,
            query=models.AgentsQuery,
            answer=answers.AgentsAnswer,
        ),
        Route(
            "POST",
            f"{agent}/kill",
            api.kill_agent,
            "Stop an agent",
            KILL,
            body=models.KillBody,
            answer=answers.ReceiptAnswer,
            errors=(503,),
        ),
        Route(
            "POST",
            f"{agent}/resume",
            api.resume_agent,
            "Let an agent go on",
            KILL,
            body=models.ResumeBody,
            answer=answers.ReceiptAnswer,
            errors=(503,),
        ),
        Route(
            "GET",
            agent,
            api.show_agent,
            "Show an agent",
            READ,
            answer=answers.AgentAnswer,
            errors=(404,),
        ),
        Route(
            "POST",
            f"{mesh}/kill",
            api.kill_selector,
            "Stop all that a selector matches",
            KILL,
            body=models.KillSelectorBody,
            answer=answers.ReceiptAnswer,
            errors=(503,),
        ),
        Route(
            "POST",
            f"{mesh}/resume",
            api.resume_selector,
            "Lift the orders inside a selector, or one order",
            KILL,
            body=models.ResumeSelectorBody,
            answer=answers.ReceiptAnswer,
            errors=(404, 503),
        ),
        Route(
            "GET",
            f"{mesh}/kills",
            api.list_kills,
            "List orders",
            READ,
            query=models.KillsQuery,
            answer=answers.KillsAnswer,
        ),
        Route(
            "GET",
            f"{mesh}/kills/{{kill_id}}",
            api.show_kill,
            "Show an order: its receipt, what ended it, notes and audit rows",
            READ,
            answer=answers.KillAnswer,
            errors=(404,),
        ),
        Route(
            "POST",
            f"{mesh}/kills/{{kill_id}}/notes",
            api.note_kill,
            "Write something about an order",
            KILL,
            body=models.NoteBody,
            answer=answers.NoteAnswer,
            errors=(404, 503),
        ),
        Route(
            "GET",
            f"{mesh}/events",
            events.events,
            "Read the audit log",
            READ,
            query=models.EventsQuery,
            answer=answers_admin.EventsAnswer,
        ),
        Route(
            "GET",
            f"{mesh}/audit/verify",
            events.verify,
            "Check the audit chain",
            READ,
            answer=answers_admin.VerifyAnswer,
        ),
        Route(
            "GET",
            f"{mesh}/audit/export",
            events.export,
            "Export the audit log",
            READ,
            answer="application/jsonl",
        ),
        Route(
            "POST",
            "/v1/tokens",
            admin.create_token,
            "Make an agent token",
            ADMINISTER,
            body=models.TokenBody,
            answer=answers_admin.TokenMade,
            status=201,
            errors=(503,),
        ),
        Route(
            "GET",
            "/v1/tokens",
            admin.list_tokens,
            "List agent tokens",
            ADMINISTER,
            answer=answers_admin.TokensAnswer,
        ),
        Route(
            "DELETE",
            "/v1/tokens/{token_id}",
            admin.revoke_token,
            "Revoke an agent token",
            ADMINISTER,
            answer=answers_admin.RevokedAnswer,
            errors=(404, 503),
        ),
        Route(
            "POST",
            "/v1/keys",
            admin.create_key,
            "Make a key",
            ADMINISTER,
            body=models.KeyBody,
            answer=answers_admin.KeyMade,
            status=201,
            errors=(409, 503),
        ),
        Route(
            "GET",
            "/v1/keys",
            admin.list_keys,
            "List keys",
            ADMINISTER,
            answer=answers_admin.KeysAnswer,
        ),
        Route(
            "DELETE",
            "/v1/keys/{key}",
            admin.revoke_key,
            "Revoke a key",
            ADMINISTER,
            answer=answers_admin.RevokedAnswer,
            errors=(404, 409, 503),
        ),
        Route(
            "GET",
            "/v1/proxies",
            admin.list_proxies,
            "List proxies",
            READ,
            answer=answers_admin.ProxiesAnswer,
        ),
        Route(
            "GET",
            "/v1/proxies/connect",
            public.connect_proxy,
            "Connect a proxy (WebSocket)",
            CONNECT,
            status=101,
        ),
        Route(
            "GET",
            "/healthz",
            public.healthz,
            "Whether the process answers",
            answer=answers_admin.OkAnswer,
        ),
        Route(
            "GET",
            "/readyz",
            public.readyz,
            "Whether the store takes writes",
            answer=answers_admin.OkAnswer,
            errors=(503,),
        ),
        Route(
            "GET",
            "/health",
            public.health,
            "Whether the process answers, and its version",
            answer=answers_admin.HealthAnswer,
        ),
        Route(
            "GET",
            "/metrics",
            public.metrics,
            "Numbers for Prometheus; no names",
            answer="text/plain",
        ),
        Route(
            "GET",
            "/ca.pem",
            public.ca_certificate,
            "The CAs that sign what proxies intercept",
            answer=_PEM,
            errors=(404,),
        ),
        Route(
            "GET",
            "/ca-bundle.pem",
            public.ca_bundle,
            "The system's CAs, and those of all proxies",
            answer=_PEM,
            errors=(404,),
        ),
        Route("GET", "/openapi.json", public.openapi, "This document", answer="application/json"),
    ]
