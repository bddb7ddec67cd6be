"""`haltwire demo`: three replicas of an agent are stopped in the middle of a message, and go on later.

Everything is done by the commands that a user would type; only the mail provider is ours. What is
printed comes from the receipt or from the provider's books, and any check that fails ends the demo
with exit code 1.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import click
from haltwire.wire.codec import decode
from haltwire.wire.receipts import Receipt

from haltwire_cli import demo_replica
from haltwire_cli.demo_checks import Books, Finding, complete, reconciled, silent, stopped
from haltwire_cli.demo_children import Child, Children, haltwire_argv
from haltwire_cli.demo_provider import MailProvider
from haltwire_cli.demo_screen import Row, Screen, rows_of
from haltwire_cli.failures import Failure
from haltwire_cli.receipt_text import kill_text

AGENT = "demo/prod/mailer"
REASON = "the link in the newsletter is broken"
WORKERS = 2
TOTAL, BATCH = 120, 10
LARGE = {"i-1": 63, "i-2": 66, "i-3": 68}
"Which message of each replica is so large that the provider stops in the middle of it."
PAUSE_S = 0.03
SILENCE_S = 3.0
START_S, MIDWAY_S, FINISH_S = 30.0, 30.0, 40.0
_LOOK_S = 0.05
_INTERRUPTED = 130
_ENDLESS = 1_000_000


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, until Ctrl-C.")
def demo(keep: bool) -> None:
    """Show a kill and a resume, with real processes and real TLS, in under 45 seconds.

    Three replicas that import nothing of haltwire send messages to a mail provider on this machine. One
    command stops them in the middle of a message, another lets them go on. The demo fails unless
    the provider read no byte in between, its books fit the receipt, and every message arrived
    exactly once.
    """
    from rich.console import Console

    screen = Screen(Console())
    try:
        with _interruptible(), _stage(screen) as stage:
            ok = stage.play()
            if ok and keep:
                stage.keep()
    except KeyboardInterrupt:
        screen.say("Interrupted; everything that the demo had started has ended.")
        sys.exit(_INTERRUPTED)
    sys.exit(0 if ok else 1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stage(screen: Screen) -> Iterator[Stage]:
    """Everything that the play needs, and its end, which no signal interrupts."""
    try:
        from haltwire_cli.demo_authority import make_authority
    except ImportError as error:
        raise Failure(
            "the demo needs more than the command line: pip install 'haltwire[server]'"
        ) from error
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="haltwire-demo-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        authority = make_authority(folder)
        provider = stack.enter_context(closing(MailProvider(authority.certificate_file)))
        children = Children(folder)
        stack.callback(children.end)
        provider.start()
        try:
            yield Stage(screen, provider, children, authority.ca_file)
        finally:
            handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ours}
            stack.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)


class _Replica:
    """What a replica has said of itself."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.refused = 0
        self.state = "sending"
        self.child: Child | None = None

    def heard(self, line: str) -> None:
        """One line of its standard output."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if said["event"] == "refused":
            self.refused += 1
            self.state = str(said["detail"])
        elif said["event"] == "done":
            self.state = "done"


class Stage:
    """The play, act by act."""

    def __init__(
        self, screen: Screen, provider: MailProvider, children: Children, provider_ca: Path
    ) -> None:
        self._screen = screen
        self._provider = provider
        self._children = children
        self._provider_ca = provider_ca
        self._replicas: dict[str, _Replica] = {}
        self._total = TOTAL

    def play(self) -> bool:
        """All of it; whether every check came out well."""
        say = self._screen.say
        say(f"Replicas of agent://{AGENT} send a newsletter with a broken link in it.")
        say("They import nothing of haltwire: their environment names a proxy, that is all.\n")
        self._start_up()
        self._start_replicas(LARGE, TOTAL, PAUSE_S)
        self._until(
            lambda books: {half.instance for half in books.half_read} == set(LARGE),
            MIDWAY_S,
            "the provider has not got half a message from every replica",
        )
        for half in self._provider.books().half_read:
            say(
                f"the provider has read {half.read:,} of {half.expected:,} bytes of a message from {half.instance}",
                2,
            )
        receipt, at_receipt = self._kill()
        findings = [stopped(receipt, LARGE), reconciled(receipt, at_receipt)]
        findings.append(self._watch_silence(at_receipt))
        self._resume()
        findings.append(complete(self._provider.books(), _expected()))
        say()
        for finding in findings:
            self._screen.finding(finding)
        return _verdict(self._screen, findings)

    def keep(self) -> None:
        """Go on with replicas that never come to an end, until interrupted."""
        endpoints = json.loads((self._children.data_dir / "endpoints.json").read_text())
        say = self._screen.say
        say("\nIt goes on until Ctrl-C. In another terminal:\n")
        say(f"export HALTWIRE_DATA_DIR={shlex.quote(str(self._children.data_dir))}", 2)
        for line in (
            "list --watch",
            f"kill {AGENT} --reason 'to see it'",
            "events --follow",
            f"resume {AGENT}",
        ):
            say(f"haltwire {line}", 2)
        say(f"\n  proxy    {endpoints['proxy_url']}\n  control  {endpoints['control_url']}\n")
        self._start_replicas(dict.fromkeys(("i-4", "i-5", "i-6"), 0), _ENDLESS, 0.5)
        self._until(lambda _: False, float("inf"), "")

    def _start_up(self) -> None:
        arguments = ["up", "--workers", str(WORKERS), "--upstream-ca", str(self._provider_ca)]
        arguments += ["--drain-for", "0s"]  # its agents would run on for nothing
        free = ["--proxy-listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"]
        self._screen.command(f"up --workers {WORKERS} --upstream-ca {self._provider_ca.name}")
        up = self._children.start_guarded("up", haltwire_argv(*arguments, *free))
        ready = self._children.data_dir / "endpoints.json"
        deadline = time.monotonic() + START_S
        while not ready.exists():
            if up.exit_code is not None or time.monotonic() > deadline:
                raise Failure(f"`haltwire up` did not start: {up.complaint()}")
            time.sleep(_LOOK_S)

    def _start_replicas(self, large: Mapping[str, int], total: int, pause_s: float) -> None:
        self._total = total
        self._replicas = {instance: _Replica(instance) for instance in large}
        for instance, replica in self._replicas.items():
            self._screen.command(f"run {AGENT} --instance {instance} -- python replica.py")
            program = [sys.executable, "-I", "-S", demo_replica.__file__, instance]
            program += [self._provider.url, str(total), str(BATCH), str(large[instance])]
            argv = haltwire_argv("run", AGENT, "--instance", instance, "--", *program, str(pause_s))
            replica.child = self._children.start(instance, argv, replica.heard)

    def _kill(self) -> tuple[Receipt, Books]:
        arguments = ("kill", AGENT, "--reason", REASON)
        self._screen.command(shlex.join(arguments))
        document = json.loads(self._children.haltwire(*arguments, "--json"))
        at_receipt = self._provider.books()
        # From here on only the cut keeps the rest of the messages from the provider.
        self._provider.read_on()
        self._screen.say(kill_text(document, datetime.now(timezone.utc)), 2)
        return decode(Receipt, document), at_receipt

    def _watch_silence(self, at_receipt: Books) -> Finding:
        before = {name: replica.refused for name, replica in self._replicas.items()}
        until = time.monotonic() + SILENCE_S
        for line in (("list",), ("events", AGENT, "--limit", "5")):
            self._screen.command(shlex.join(line))
            self._screen.say(self._children.haltwire(*line).rstrip(), 2)
        self._until(lambda _: time.monotonic() >= until, SILENCE_S + 1.0, "")
        tried = {name: replica.refused - before[name] for name, replica in self._replicas.items()}
        return silent(at_receipt, self._provider.books(), tried)

    def _resume(self) -> None:
        self._screen.command(f"resume {AGENT}")
        self._screen.say(self._children.haltwire("resume", AGENT).rstrip(), 2)
        for replica in self._replicas.values():
            replica.state = "going on"
        self._until(
            lambda _: all(
                r.child is None or r.child.exit_code == 0 for r in self._replicas.values()
            ),
            FINISH_S,
            "the replicas have not come to their end",
        )
        accepted = sorted(self._provider.books().accepted.items())
        told = ", ".join(f"{count} from {instance}" for instance, count in accepted)
        self._screen.say(f"the provider has accepted {told}", 2)

    def _until(self, condition: Callable[[Books], bool], timeout_s: float, otherwise: str) -> None:
        """Show how it goes until the condition holds; Failure when it does not in time, or a replica fails."""

        def rows() -> list[Row]:
            states = {name: replica.state for name, replica in self._replicas.items()}
            return rows_of(self._provider.books(), self._total, states)

        deadline = time.monotonic() + timeout_s
        with self._screen.progress(rows) as tell:
            while not self._provider.wait_for(condition, _LOOK_S):
                tell()
                self._check_replicas()
                if time.monotonic() > deadline:
                    raise Failure(f"{otherwise} within {timeout_s:g} s.")

    def _check_replicas(self) -> None:
        for replica in self._replicas.values():
            if replica.child is not None and replica.child.exit_code:
                raise Failure(
                    f"replica {replica.instance} ended with exit code {replica.child.exit_code}: {replica.child.complaint()}"
                )


def _expected() -> list[str]:
    return [f"{instance}/{number}" for instance in LARGE for number in range(1, TOTAL + 1)]


def _verdict(screen: Screen, findings: list[Finding]) -> bool:
    failed = [finding for finding in findings if not finding.ok]
    screen.say()
    if failed:
        screen.say(f"The demo has FAILED. {failed[0].sentence}", style="bold red")
    else:
        screen.say(
            "The demo has passed: what it claims rests on the receipt and the provider's books alone."
        )
    return not failed
