"""The entry of the processes that are started: one control server, or one proxy worker.

Besides what starts them (compose.py) this is the only module that knows both halves.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haltwire_cli import trust
from haltwire_cli.certificates import Pair
from haltwire_cli.listener_tls import Listening, Pins, followed
from haltwire_cli.orphan import end_with_parent
from haltwire_cli.pulse import answering


def child_main(role: str) -> int:
    """Be the control server or a worker, as the one line on stdin says, until SIGTERM or the end of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    instructions = json.loads(_first_line(0))
    name = instructions.get("proxy_id", role)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format=f"haltwire {name}: %(message)s"
    )
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

    settings: dict[str, Any] = {**instructions, "stop_fd": answering()}
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
        trusted = settings.pop("control_trust")
        pinned = Pins(Path(trusted[1])) if trusted and trusted[0] == "pins" else None
        if trusted:
            settings["control_tls"] = pinned.context if pinned else _trust(*trusted)
        settings |= {
            "tunnel_hosts": tuple(settings["tunnel_hosts"]),
            "own_addresses": tuple((h, p) for h, p in settings["own_addresses"]),
            "allow_to": tuple(settings["allow_to"]),
            "connect_ports": tuple(settings["connect_ports"]),
            "limits": tuple(settings["limits"]),
        }
        async with followed(served, pinned):
            await worker.serve(worker.WorkerConfig(**settings), ready)


def _trust(whom: str, file: str | None) -> ssl.SSLContext:
    if whom == "ours":
        return trust.of_our_authority(Path(str(file)))
    return trust.of_the_world() if file is None else trust.of_this_authority(Path(file))


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


if __name__ == "__main__":
    sys.exit(child_main(sys.argv[1]))
