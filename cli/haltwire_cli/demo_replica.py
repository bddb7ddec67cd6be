"""A replica of the demo's mailer: an ordinary program that knows nothing of haltwire.

Standard library only, and started with `python -I -S`, so that nothing else could be imported. It
sends a list of messages, each under an Idempotency-Key of its own; whatever goes wrong on the way,
it waits a moment and sends the same message under the same key again. After each batch it tells
whoever watches over it how far it is: a plain POST to http://haltwire.internal.

    python -I -S demo_replica.py INSTANCE URL TOTAL BATCH LARGE PAUSE_S
"""

import http.client
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

PROGRESS_URL = "http://haltwire.internal/v1/mesh/heartbeat"
AGAIN_AFTER_S = 0.25
TIMEOUT_S = 60
LARGE_BYTES = 3_000_000


def main(instance: str, url: str, total: int, batch: int, large: int, pause_s: float) -> None:
    """Send messages 1 to `total`; the one numbered `large` has a large attachment."""
    for number in range(1, total + 1):
        message = {"message": f"{instance}/{number}", "to": f"reader-{number}@example.org"}
        if number == large:
            message["attachment"] = "x" * LARGE_BYTES
        send(url, f"{instance}-{number:06d}", json.dumps(message).encode())
        if number % batch == 0 or number == total:
            report({"batch": -(-number // batch), "sent": number, "total": total, "unit": "emails"})
        time.sleep(pause_s)
    say("done", "")


def send(url: str, key: str, body: bytes) -> None:
    """Deliver one message, however often it takes."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    while True:
        try:
            post(url, body, headers)
        except urllib.error.HTTPError as refused:
            said = refused.read()
            if refused.code not in (403, 502, 503, 504):
                raise
            say("refused", code_of(said) or f"status {refused.code}")
        except (OSError, http.client.HTTPException) as trouble:
            # Cut, reset, or refused before there was a tunnel.
            say("refused", words_of(trouble))
        else:
            return
        time.sleep(AGAIN_AFTER_S)


def report(progress: dict[str, object]) -> None:
    """Tell how far we are; a report that does not get through is not worth stopping for."""
    body = json.dumps({"metadata": progress}).encode()
    try:
        post(PROGRESS_URL, body, {"Content-Type": "application/json"})
    except (OSError, http.client.HTTPException) as trouble:
        say("unreported", words_of(trouble))


def post(url: str, body: bytes, headers: dict[str, str]) -> None:
    """POST through whatever proxy the environment names."""
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
        answer.read()


def code_of(body: bytes) -> str:
    """The error code in a refusal's JSON body, if it is one."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def words_of(trouble: Exception) -> str:
    """What went wrong, without the decoration that libraries add."""
    cause = getattr(trouble, "reason", trouble)
    return getattr(cause, "strerror", None) or str(cause)


def say(event: str, detail: str) -> None:
    """One JSON line for whoever started this."""
    print(json.dumps({"event": event, "detail": detail}), flush=True)


def end_with_input() -> None:
    """End this program when its standard input ends: whoever started it is gone."""
    while os.read(0, 4096):
        pass
    os._exit(3)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    name, address, how_many, per_batch, where_large, seconds = sys.argv[1:]
    main(name, address, int(how_many), int(per_batch), int(where_large), float(seconds))
