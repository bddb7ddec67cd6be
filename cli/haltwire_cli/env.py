"""env: the variables of an agent that somebody else starts."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click
from haltwire.proxyenv import proxy_environment
from haltwire.wire.names import AgentRef
from haltwire.wire.selectors import Selector

from haltwire_cli.access import proxy_url_of
from haltwire_cli.api import Api, with_api
from haltwire_cli.cafiles import ca_files
from haltwire_cli.names import agent_of

K8S_FOLDER = "/etc/haltwire"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@click.command()
@click.argument("agent")
@click.option(
    "--format",
    "form",
    type=click.Choice(["sh", "dotenv", "k8s"]),
    default="sh",
    show_default=True,
    help="For eval in a shell, an .env file, or a Secret and a ConfigMap.",
)
@with_api
def env(api: Api, agent: str, form: str) -> None:
    """Print the variables that send AGENT's traffic through the proxy.

    They hold a fresh token, read inside HTTPS: `eval "$(haltwire env acme/prod/mailer)"`.
    """
    ref, instance = agent_of(api, agent)
    ca_file, ca_bundle = ca_files(api)
    selector = Selector.of(ref, instance)
    made = api.post("/v1/tokens", {"selector": str(selector), "tls": "intercept"}).document
    proxy_url = proxy_url_of(made)
    _say(f"made token {made['token_id']}; `haltwire token revoke {made['token_id']}` ends it.")
    if form == "k8s":
        if urlsplit(proxy_url).hostname in ("127.0.0.1", "::1", "localhost"):
            _say(
                "the proxy's URL names loopback, where no pod reaches it: see up --proxy-listen, and call this with the --url that pods would use."
            )
        variables = proxy_environment(
            proxy_url, f"{K8S_FOLDER}/{ca_file.name}", f"{K8S_FOLDER}/{ca_bundle.name}"
        )
        click.echo(_k8s(ref, variables, (ca_file, ca_bundle)), nl=False)
        return
    variables = proxy_environment(proxy_url, str(ca_file), str(ca_bundle))
    if form == "sh" and os.environ.get("HALTWIRE_API_KEY"):
        _say("HALTWIRE_API_KEY stays set in this shell, and whatever runs in it could use it.")
    quote, start = (shlex.quote, "export ") if form == "sh" else (_dotenv, "")
    click.echo("\n".join(f"{start}{name}={quote(value)}" for name, value in variables.items()))


def _say(sentence: str) -> None:
    click.echo(f"haltwire: {sentence}", err=True)


def _dotenv(value: str) -> str:
    # Docker's --env-file keeps quotes as part of the value, other readers need them around blanks.
    return value if re.fullmatch(r"[\w@%+=:,./~-]*", value, re.ASCII) else f'"{value}"'


def _k8s(agent: AgentRef, variables: Mapping[str, str], files: tuple[Path, ...]) -> str:
    # A Secret's name is a DNS name: no '_', and at most 63 characters so that it may be a label too.
    name = f"haltwire-{agent.label}".replace("_", "-").replace(".", "-")[:63].rstrip("-")
    lines = [
        "# kubectl apply --server-side -f - (the bundle is too large for a client-side apply). In the pod:",
        f"#   envFrom: [{{secretRef: {{name: {name}}}}}]",
        f"#   volumeMounts: [{{name: haltwire, mountPath: {K8S_FOLDER}, readOnly: true}}]",
        f"#   volumes: [{{name: haltwire, configMap: {{name: {name}}}}}]",
        "apiVersion: v1",
        "kind: Secret",
        f"metadata: {{name: {name}}}",
        "stringData:",
        *(f'  {variable}: "{value}"' for variable, value in variables.items()),
        "---",
        "apiVersion: v1",
        "kind: ConfigMap",
        f"metadata: {{name: {name}}}",
        "data:",
    ]
    for file in files:
        lines.append(f"  {file.name}: |")
        lines += [
            f"    {line}"
            for block in _PEM.findall(file.read_text(errors="replace"))
            for line in block.splitlines()
        ]
    return "\n".join(lines) + "\n"
