"""An agent that knows nothing of haltwire but an environment variable and one optional URL.

    haltwire run acme/prod/mailer -- python examples/no_sdk.py https://mail.example.com/send 100

It posts numbered e-mails. After each it reports its progress; when it is killed it waits, and goes
on with the same e-mail and the same Idempotency-Key once it is resumed.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request

HEARTBEAT = "http://haltwire.internal/v1/mesh/heartbeat"


def send(url: str, number: int) -> bool:
    """Send one e-mail; False when it did not get through, and may or may not have arrived."""
    request = urllib.request.Request(
        url,
        data=json.dumps({"to": f"customer-{number}@example.com"}).encode(),
        headers={"Idempotency-Key": f"campaign-{number}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            print(f"e-mail {number}: {error.code} {error.read().decode()}", flush=True)
        return False
    except OSError as error:
        print(f"e-mail {number}: {error}", flush=True)
        return False
    return True


def report(sent: int, total: int) -> None:
    """Tell the operator how far we are; nothing depends on it."""
    metadata = {"sent": sent, "total": total, "unit": "emails"}
    request = urllib.request.Request(
        HEARTBEAT,
        data=json.dumps({"metadata": metadata}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with contextlib.suppress(OSError):
        urllib.request.urlopen(request, timeout=5).close()


def main() -> None:
    """Send them all."""
    url, total = sys.argv[1], int(sys.argv[2])
    for number in range(1, total + 1):
        while not send(url, number):
            time.sleep(0.2)
        report(number, total)
    print(f"sent {total}", flush=True)


if __name__ == "__main__":
    main()
