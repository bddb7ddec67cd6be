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
from functools import partial
from pathlib import Path
from typing import Any

from haltwire_cli.certificates import Pair, names_of, serves_tls
from haltwire_cli.failures import Failure
from haltwire_cli.home import Endpoints, Home
from haltwire_cli.listen import ANYWHERE, Address, address_of, bind, is_loopback, url_of
from haltwire_cli.listener_tls import (
    LOOK_S,
    Issued,
    ListenerTls,
    Listening,
    Pins,
    Published,
    followed,
    keep,
)
from haltwire_cli.supervisor import Child, ChildFailedError, supervise
from haltwire_cli.trust import of_our_authority

PROXY_BACKLOG = 4096
"mitmproxy's 100 costs a second per burst of 50 connections (SYN retransmission); Linux caps at somaxconn, 4096."
CONTROL_BACKLOG = 1024
RENEWAL_LOOK_S = 60.0
"How often our own certificate's age and this machine's addresses are looked at."
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
    own_tls: Pair | None
    "The operator's certificate and key; otherwise we have our own."
    insecure: bool
    "Whether the control server may be reached from other machines without TLS."
    connect_ports: tuple[int, ...] = ()
    limits: tuple[str, ...] = ()
    on_stale: str = "hold"
    "What proxies do beyond their lease, for `hold_for_s` at most."
    hold_for_s: float = 10.0


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
    from haltwire_proxy.authority import AuthorityError, ensure_ca

    try:
        ca_file = ensure_ca(plan.data_dir)
        tls = _listener_tls(plan, listeners)
    except AuthorityError as error:
        raise Failure(f"{error}.") from error
    control = address_of(listeners.control)
    if not (tls.control or is_loopback(control)):
        tell(
            f"INSECURE: {control} can be reached from other machines, and keys travel to it unencrypted, because of --insecure."
        )
    endpoints = Endpoints(
        url_of(address_of(listeners.proxy)),
        url_of(control, "https" if tls.control else "http"),
        str(ca_file),
        str(tls.pins) if tls.control and tls.pins else None,
    )

    def on_ready() -> None:
        home.publish(endpoints)
        ready(endpoints)

    def on_stop() -> None:
        home.unpublish()
        listeners.close()  # whoever connects from here on is refused instead of left waiting

    loop = asyncio.get_running_loop()
    keeping = loop.create_task(keep(tls.look, tls.look_every_s, tell), name="keep certificates")
    try:
        stages = _stages(plan, claim, listeners, tls, endpoints)
        await supervise(stages, on_ready, on_stop, tell)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def _listener_tls(plan: Plan, listeners: Listeners) -> ListenerTls:
    from haltwire_proxy.leaf import RENEWED_AFTER, issue_leaf

    listens = (
        (plan.control_listen, address_of(listeners.control)),
        (plan.proxy_listen, address_of(listeners.proxy)),
    )
    control = serves_tls(listens[0][1], plan.own_tls, plan.insecure)
    if plan.own_tls is not None:
        published = Published(plan.own_tls, plan.data_dir / "public" / "control.pem")
        return ListenerTls(plan.own_tls, control, published.file, published.look, LOOK_S)
    issued = Issued(
        partial(issue_leaf, plan.data_dir),
        lambda: names_of(listens, socket.gethostname()),
        RENEWED_AFTER,
    )
    return ListenerTls(issued.pair, control, None, issued.look, RENEWAL_LOOK_S)


def _stages(
    plan: Plan, claim: int, listeners: Listeners, tls: ListenerTls, endpoints: Endpoints
) -> tuple[tuple[Child, ...], ...]:
    """The control server first, then the workers. Their instructions are the only place where the key appears."""
    proxy_address, control_address = address_of(listeners.proxy), address_of(listeners.control)
    proxy_key = f"hwk_{secrets.token_urlsafe(32)}"
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "localhost"
    # Children keep the claim open too: the next `up` on this directory waits for the last of them.
    environment = {
        name: value
        for name, value in os.environ.items()
        # mitmproxy would write the keys of all that it reads inside to where the others say.
        if not name.startswith("HALTWIRE_") and not name.endswith("SSLKEYLOGFILE")
    }
    pair = {"certificate": str(tls.pair.certificate), "key": str(tls.pair.key)}

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
            "proxy_url": endpoints.proxy_url,
            "proxy_anywhere": proxy_address.host in ANYWHERE,
            "tls": pair if tls.control else None,
        },
    )
    workers = tuple(
        child(
            f"proxy worker {number}",
            "proxy",
            listeners.proxy,
            {
                "proxy_id": f"{host}-{number}",
                "control_url": endpoints.control_url,
                "control_ca": endpoints.ca_file if tls.control else None,
                "control_pins": endpoints.control_certificate,
                "listener_tls": pair,
                "proxy_key": proxy_key,
                "data_dir": str(plan.data_dir),
                "tls": plan.tls,
                "tunnel_hosts": plan.tunnel_hosts,
                "upstream_ca": str(plan.upstream_ca) if plan.upstream_ca else None,
                "own_addresses": [(a.host, a.port) for a in (proxy_address, control_address)],
                "allow_to": plan.allow_to,
                "connect_ports": plan.connect_ports,
                "limits": plan.limits,
                "on_stale": plan.on_stale,
                "hold_for_s": plan.hold_for_s,
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

    settings = dict(instructions)
    if role == "control":
        from haltwire_control import app

        served = _listening(settings["tls"])
        settings["tls"] = served.context if served else None
        async with followed(served):
            await app.serve(app.ControlConfig(**settings), ready)
    else:
        from haltwire_proxy import worker

        served = _listening(settings["listener_tls"])
        settings["listener_tls"] = served.context if served else None
        ca, pins = settings.pop("control_ca"), settings.pop("control_pins")
        pinned = Pins(Path(pins)) if pins else None
        if ca:
            settings["control_tls"] = pinned.context if pinned else of_our_authority(Path(ca))
        settings |= {
            "tunnel_hosts": tuple(settings["tunnel_hosts"]),
            "own_addresses": tuple((h, p) for h, p in settings["own_addresses"]),
            "allow_to": tuple(settings["allow_to"]),
            "connect_ports": tuple(settings["connect_ports"]),
            "limits": tuple(settings["limits"]),
        }
        async with followed(served, pinned):
            await worker.serve(worker.WorkerConfig(**settings), ready)


def _listening(pair: Mapping[str, str] | None) -> Listening | None:
    return Listening(Pair(Path(pair["certificate"]), Path(pair["key"]))) if pair else None


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
