"""run: a command as an agent, with a token of its own that lives as long as the command does."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Mapping

import click
from haltwire.proxyenv import proxy_environment, without_ours
from haltwire.wire.names import check_instance
from haltwire.wire.selectors import Selector

from haltwire_cli.access import proxy_url_of
from haltwire_cli.api import Api, with_api
from haltwire_cli.cafiles import ca_files
from haltwire_cli.failures import Failure
from haltwire_cli.names import agent_of
from haltwire_cli.shield import hide_from_same_user

CANNOT_EXECUTE, NOT_THERE, BY_SIGNAL = 126, 127, 128
_PASSED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_SI_KERNEL = 0x80
_ALPHABET = "abcdefghjkmnpqrstvwxyz0123456789"


@click.command()
@click.argument("agent")
@click.option(
    "--instance",
    metavar="NAME",
    help="Name of this copy; otherwise this host's name and 6 random characters.",
)
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@with_api
def run(api: Api, agent: str, instance: str | None, command: tuple[str, ...]) -> None:
    """Run CMD as AGENT: its traffic goes through the proxy, and a kill stops it there.

    CMD gets the variables that HTTP clients read for a proxy and for CAs, and a token of its own that
    is revoked when it ends. Signals are passed on to it; its exit code is this command's.
    """
    hide_from_same_user()
    ref, typed_instance = agent_of(api, agent)
    if instance and typed_instance and instance != typed_instance:
        raise click.UsageError(f"{agent!r} names another instance than --instance {instance}.")
    try:
        name = check_instance(instance or typed_instance or _instance_name())
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="'--instance'") from error
    ca_file, ca_bundle = ca_files(api)
    selector = Selector.of(ref, name)
    # From here on a signal waits until there is a command to pass it to, so that no token is left behind.
    inherited = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED, signal.SIGCHLD})
    made = api.post("/v1/tokens", {"selector": str(selector), "tls": "intercept"}).document
    try:
        click.echo(
            f"haltwire: running as {ref}, instance {name}. The command has your rights: it could read the operator's key.",
            err=True,
        )
        environment = {
            **without_ours(os.environ),
            **proxy_environment(proxy_url_of(made), str(ca_file), str(ca_bundle)),
            "HALTWIRE_INSTANCE": name,
        }
        code = _run(command, environment, inherited)
    finally:
        _revoke(api, made["token_id"])
    sys.exit(code)


def _instance_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100] or "host"
    return f"{host}-{''.join(secrets.choice(_ALPHABET) for _ in range(6))}"


def _run(
    command: tuple[str, ...], environment: Mapping[str, str], mask: set[signal.Signals | int]
) -> int:
    """Its exit code, or 128 and the signal that ended it; 127 or 126 when it cannot be started."""
    if early := _ENDING & signal.sigpending():
        return BY_SIGNAL + int(min(early))  # a Ctrl-C that came before there was anything to stop
    # Inherited as ignored, there would be no exit code.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        child = os.posix_spawnp(
            command[0],
            command,
            environment,
            setsigmask=mask,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them
        )
    except OSError as error:
        click.echo(f"haltwire: {command[0]} cannot be run: {error.strerror}.", err=True)
        return NOT_THERE if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE
    while True:
        caught = signal.sigwaitinfo({*_PASSED, signal.SIGCHLD})
        if caught.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else BY_SIGNAL - code
        elif caught.si_code != _SI_KERNEL:
            # What the terminal sends, the kernel has already given to the command as well.
            os.kill(child, caught.si_signo)


def _revoke(api: Api, token_id: str) -> None:
    try:
        api.delete(f"/v1/tokens/{token_id}")
    except Failure as failure:
        click.echo(
            f"haltwire: the token is still valid, because {failure.format_message()} End it with `haltwire token revoke {token_id}`.",
            err=True,
        )
