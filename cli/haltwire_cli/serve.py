"""The composition root: what `up` starts, and the entry of the processes that it starts.

This is the only module that knows both halves. It imports them where a process needs them, so that
`haltwire --help` needs neither.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.listen import Address, address_of, bind, is_loopback, url_of
from haltwire_cli.supervisor import Child, ChildFailedError, supervise

PROXY_BACKLOG = 4096
"mitmproxy's 100 costs a second per burst of 50 connections (SYN retransmission); Linux caps at somaxconn, 4096."
CONTROL_BACKLOG = 1024
ORPHAN_GRACE_S = 1.5
"A child ends itself within a second of its parent's death; this long after, it is ended."


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` was told."""

    data_dir: Path
    proxy_listen: Address
    control_listen: Address
    workers: int
    lease_s: float
    tls: str
    tunnel_hosts: tuple[str, ...]
    upstream_ca: Path | None
    allow_to: tuple[str, ...]
    connect_ports: tuple[int, ...] = ()


Ready = Callable[[Endpoints], None]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Both sockets, bound before anything is started; every worker inherits the same one."""

    control: socket.socket
    proxy: socket.socket

    def close(self) -> None:
        """Let go of both. Idempotent."""
        self.control.close()
        self.proxy.close()


def up(plan: Plan, ready: Ready, tell: Tell) -> None:
    """Run everything until a signal; Failure when it cannot be started."""
    home = Home(plan.data_dir)
    with home.claimed() as claim:
        listeners = _listeners(plan)
        try:
            asyncio.run(_serve_until_stopped(plan, home, claim, listeners, ready, tell))
        except ChildFailedError as error:
            raise Failure(
                f"{error}; everything is stopped. What it said itself is above."
            ) from error
        except OSError as error:
            raise Failure(f"{plan.data_dir} cannot be used: {error}.") from error
        finally:
            listeners.close()


def _listeners(plan: Plan) -> Listeners:
    control = _bind(plan.control_listen, CONTROL_BACKLOG, "--control-listen")
    try:
        if not is_loopback(address_of(control)):
            raise click.BadParameter(
                f"{plan.control_listen} can be reached from other machines, where its keys would travel unencrypted: use a loopback address.",
                param_hint="'--control-listen'",
            )
        return Listeners(control, _bind(plan.proxy_listen, PROXY_BACKLOG, "--proxy-listen"))
    except BaseException:
        control.close()
        raise


def _bind(address: Address, backlog: int, option: str) -> socket.socket:
    try:
        return bind(address, backlog)
    except OSError as error:
        raise Failure(
            f"{error.strerror or error}; choose another address with {option}."
        ) from error


async def _serve_until_stopped(
    plan: Plan, home: Home, claim: int, listeners: Listeners, ready: Ready, tell: Tell
) -> None:
    from haltwire_proxy.authority import ensure_ca

    ca_file = ensure_ca(plan.data_dir)
    endpoints = Endpoints(
        url_of(address_of(listeners.proxy)), url_of(address_of(listeners.control)), str(ca_file)
    )

    def on_ready() -> None:
        home.publish(endpoints)
        ready(endpoints)

    def on_stop() -> None:
        home.unpublish()
        listeners.close()  # whoever connects from here on is refused instead of left waiting

    await supervise(_stages(plan, claim, listeners), on_ready, on_stop, tell)


def _stages(plan: Plan, claim: int, listeners: Listeners) -> tuple[tuple[Child, ...], ...]:
    """The control server first, then the workers. Their instructions are the only place where the key appears."""
    proxy_address, control_address = address_of(listeners.proxy), address_of(listeners.control)
    proxy_key = f"hwk_{secrets.token_urlsafe(32)}"
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "localhost"
    # Children keep the claim open too: the next `up` on this directory waits for the last of them.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HALTWIRE_")}

    def child(name: str, role: str, listener: socket.socket, instructions: dict[str, Any]) -> Child:
        return Child(
            name=name,
            # -P: a file in the working directory must never stand in for one of our modules.
            argv=(sys.executable, "-P", "-O", "-m", "haltwire_cli.serve", role),
            instructions={**instructions, "listen_fd": listener.fileno(), "stop_fd": 0},
            fds=(listener.fileno(), claim),
            environment=environment,
        )

    first = child(
        "the control server",
        "control",
        listeners.control,
        {
            "data_dir": str(plan.data_dir),
            "lease_ms": round(plan.lease_s * 1000),
            "local_proxy_key": proxy_key,
            "proxy_url": url_of(proxy_address),
        },
    )
    workers = tuple(
        child(
            f"proxy worker {number}",
            "proxy",
            listeners.proxy,
            {
                "proxy_id": f"{host}-{number}",
                "control_url": url_of(control_address),
                "proxy_key": proxy_key,
                "data_dir": str(plan.data_dir),
                "tls": plan.tls,
                "tunnel_hosts": plan.tunnel_hosts,
                "upstream_ca": str(plan.upstream_ca) if plan.upstream_ca else None,
                "own_addresses": [(a.host, a.port) for a in (proxy_address, control_address)],
                "allow_to": plan.allow_to,
                "connect_ports": plan.connect_ports,
                "beyond_loopback": not is_loopback(proxy_address),
            },
        )
        for number in range(1, plan.workers + 1)
    )
    return (first,), workers


def child_main(role: str) -> int:
    """Be the control server or a worker, as the one line on stdin says, until SIGTERM or the end of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    instructions = json.loads(_first_line(0))
    name = instructions.get("proxy_id", role)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format=f"haltwire {name}: %(message)s"
    )
    threading.Thread(target=_end_when_orphaned, name="orphan watch", daemon=True).start()
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(role, instructions))
    except OSError as error:
        logging.error("%s", error)
        return 1
    except Exception:
        logging.exception("unexpected end")
        return 1
    return 0


async def _serve(role: str, instructions: Mapping[str, Any]) -> None:
    def ready() -> None:
        answer = {"ready": True}
        if role == "proxy":
            answer["proxy_id"] = instructions["proxy_id"]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    if role == "control":
        from haltwire_control import app

        await app.serve(app.ControlConfig(**instructions), ready)
    else:
        from haltwire_proxy import worker

        lists = {
            "tunnel_hosts": tuple(instructions["tunnel_hosts"]),
            "own_addresses": tuple((h, p) for h, p in instructions["own_addresses"]),
            "allow_to": tuple(instructions["allow_to"]),
            "connect_ports": tuple(instructions["connect_ports"]),
        }
        await worker.serve(worker.WorkerConfig(**{**instructions, **lists}), ready)


def _first_line(fd: int) -> bytes:
    # Not sys.stdin: its buffer would read ahead on a descriptor that the event loop takes over.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 1)
        if not piece:
            raise SystemExit(0)  # the parent has gone before it said anything
        line += piece
    return line


def _end_when_orphaned() -> None:
    """The last resort, for a process whose event loop stands still when its parent dies."""
    import select
    import time

    poll = select.poll()
    poll.register(os.dup(0), select.POLLHUP)  # whoever reads stdin may close it
    poll.poll()
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(child_main(sys.argv[1]))
