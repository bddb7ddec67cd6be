"""haltwire beside squid, mitmdump and no proxy at all: rates, processor time, and the two ratios that matter.

Everything runs at once on loopback; what is measured alternates, and the best of the rounds
counts. Ours is the whole product: `haltwire up` with one worker, a real token, authentication,
lease gate and ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import ssl
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import load
import peers
import uvloop

AGENT = "agent://bench/local/{}~b-1"
TITLES = {"requests": "requests/s", "tls": "TLS req/s", "connects": "CONNECT/s", "download": "MB/s"}
GOALS = (
    ("tunnel / squid", "haltwire tunnel", "squid", "requests", 0.9),
    ("tunnel / squid", "haltwire tunnel", "squid", "tls", 0.9),
    ("tunnel / squid", "haltwire tunnel", "squid", "connects", 0.9),
    ("tunnel / squid, open", "haltwire tunnel", "squid, open", "requests", None),
    ("tunnel / squid, open", "haltwire tunnel", "squid, open", "connects", None),
    ("interception / mitmdump", "haltwire intercept", "mitmdump", "tls", 1.8),
    ("interception / mitmdump", "haltwire intercept", "mitmdump", "connects", None),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of the table."""

    name: str
    process: peers.Process | None
    ways: dict[str, load.Way]
    "By kind of load; a kind that is missing is not measured."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")
    parser.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="haltwire, squid or mitmdump"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that all processes end
    where = peers.machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haltwire-bench-")))
        folder.chmod(0o755)
        for_proxies, for_the_rest = peers.split_cores()
        stack.enter_context(peers.on_cores(for_the_rest))
        ports = stack.enter_context(peers.origin(folder / "origin"))
        with peers.on_cores(for_proxies):
            subjects = _start(stack, folder, ports, arguments.without)
        samples = _measure(subjects, arguments)
    print(_table(where, subjects, samples, arguments))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": where, **_document(subjects, samples, arguments)}, indent=1)
        )


def _start(
    stack: contextlib.ExitStack, folder: Path, ports: dict, without: list[str]
) -> list[Subject]:
    ca_file = ports["ca_file"]
    plain = load.Way("127.0.0.1", ports["http"])
    secure = load.Way("127.0.0.1", ports["https"], tls=_trusting(ca_file))
    subjects = [Subject("direct", None, {"requests": plain, "tls": secure, "download": plain})]

    def tunnelling(name: str, process: peers.Process, proxy_url: str) -> None:
        bare, inside = (_through(proxy_url, way) for way in (plain, secure))
        ways = {"requests": bare, "tls": inside, "connects": bare, "download": bare}
        subjects.append(Subject(name, process, ways))

    def intercepting(name: str, process: peers.Process, proxy_url: str, ca: str) -> None:
        way = _through(proxy_url, replace(secure, tls=_trusting(ca)))
        subjects.append(Subject(name, process, dict.fromkeys(("tls", "connects", "download"), way)))

    ours = None
    if "haltwire" not in without:
        ours = stack.enter_context(peers.haltwire(folder / "haltwire", 1, ca_file))
        token = ours.token(AGENT.format("tunnelled"), "tunnel")
        tunnelling("haltwire tunnel", ours.process, token)
    if "squid" not in without and peers.squid_path():
        for name, authenticates in (("squid", True), ("squid, open", False)):
            if authenticates and not peers.squid_authenticator():
                continue
            place = folder / name.replace(", ", "-")
            tunnelling(name, *stack.enter_context(peers.squid(place, authenticates)))
    if ours:
        token = ours.token(AGENT.format("intercepted"), "intercept")
        intercepting("haltwire intercept", ours.process, token, ours.ca_file)
    if "mitmdump" not in without:
        intercepting("mitmdump", *stack.enter_context(peers.mitmdump(folder / "mitmdump", ca_file)))
    return subjects


def _through(proxy_url: str, way: load.Way) -> load.Way:
    through = load.way_from("http://127.0.0.1", proxy_url)
    return replace(way, proxy=through.proxy, authorization=through.authorization)


def _trusting(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # mitmdump's own certificates do not pass it
    return context


def _measure(
    subjects: list[Subject], arguments: argparse.Namespace
) -> dict[tuple[str, str], list[load.Sample]]:
    samples: dict[tuple[str, str], list[load.Sample]] = {}
    for number in range(arguments.rounds):
        for kind in TITLES:
            for subject in subjects:
                if kind in subject.ways:
                    sample = _sample(subject, kind, arguments)
                    samples.setdefault((subject.name, kind), []).append(sample)
                    print(
                        f"round {number + 1}: {subject.name:<20} {TITLES[kind]:<11} {sample.rate:>9,.0f}"
                        + (f"  {sample.errors} ERRORS" if sample.errors else ""),
                        file=sys.stderr,
                    )
    return samples


def _sample(subject: Subject, kind: str, arguments: argparse.Namespace) -> load.Sample:
    connections = min(4, arguments.connections) if kind == "download" else arguments.connections
    try:
        return uvloop.run(
            load.measure(
                "requests" if kind == "tls" else kind,
                subject.ways[kind],
                connections,
                arguments.seconds,
                subject.process.cpu_s if subject.process else lambda: 0.0,
            )
        )
    except (OSError, TimeoutError) as error:
        print(f"{subject.name}, {TITLES[kind]}: {error}", file=sys.stderr)
        return load.Sample(0.0, 1.0, 0.0, float("nan"), float("nan"), 1)


def _table(
    where: dict[str, str], subjects: list[Subject], samples: dict, arguments: argparse.Namespace
) -> str:
    lines = [
        f"{where['cpu']}, {where['system']}, Python {where['python']}, load average {where['load average']} before; the proxy on one core, load generator and origin on the other",
        f"best of {arguments.rounds} rounds, {arguments.connections} connections, {arguments.seconds:g} s each; cpu: the proxy's whole process tree",
        "",
        f"{'':<20} {'requests/s':>10} {'p50 us':>7} {'p99 us':>7} {'cpu us':>7} {'TLS req/s':>10} {'p50 us':>7} {'cpu us':>7} {'CONNECT/s':>10} {'cpu us':>7} {'MB/s':>7} {'cpu ms/MB':>9}",
    ]
    for subject in subjects:
        requests, tls, connects, download = (samples.get((subject.name, kind)) for kind in TITLES)
        cells = [f"{subject.name:<20}", _rate(requests)]
        cells += [_least(requests, name) for name in ("p50_us", "p99_us", "cpu_us")]
        cells += [_rate(tls), _least(tls, "p50_us"), _least(tls, "cpu_us")]
        cells += [_rate(connects), _least(connects, "cpu_us")]
        cells += [_rate(download, 7), _least(download, "cpu_us", 9, 1e-3, 2)]
        lines.append(" ".join(cells).rstrip())
    lines.append("")
    for title, one, other, kind, goal in GOALS:
        ratio = _ratio(samples, one, other, kind)
        if ratio is not None:
            judged = (
                "" if goal is None else f"  goal {goal}: {'met' if ratio >= goal else 'MISSED'}"
            )
            lines.append(f"{title:<24} {TITLES[kind]:<10} {ratio:>6.2f}{judged}")
    errors = sum(sample.errors for several in samples.values() for sample in several)
    if errors:
        lines.append(f"{errors} ERRORS: these figures do not count")
    return "\n".join(lines)


def _rate(samples: list[load.Sample] | None, width: int = 10) -> str:
    return f"{max(s.rate for s in samples):>{width},.0f}" if samples else " " * width


def _least(
    samples: list[load.Sample] | None,
    name: str,
    width: int = 7,
    scale: float = 1.0,
    decimals: int = 0,
) -> str:
    values = [getattr(sample, name) * scale for sample in samples or () if not sample.errors]
    best = min(values, default=0.0)
    return f"{best:>{width},.{decimals}f}" if best > 0 else " " * width


def _ratio(samples: dict, one: str, other: str, kind: str) -> float | None:
    if (one, kind) not in samples or (other, kind) not in samples:
        return None
    ours, theirs = (max(s.rate for s in samples[name, kind]) for name in (one, other))
    return ours / theirs


def _document(subjects: list[Subject], samples: dict, arguments: argparse.Namespace) -> dict:
    return {
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "connections": arguments.connections,
        "samples": {
            subject.name: {
                kind: [
                    {"rate": s.rate, "cpu_us": s.cpu_us if subject.process else None}
                    | {"p50_us": s.p50_us, "p99_us": s.p99_us, "errors": s.errors}
                    for s in samples[subject.name, kind]
                ]
                for kind in subject.ways
            }
            for subject in subjects
        },
        "ratios": {
            f"{title}, {TITLES[kind]}": _ratio(samples, one, other, kind)
            for title, one, other, kind, _ in GOALS
        },
    }


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
