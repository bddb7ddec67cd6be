"""Messages of the right form that no honest proxy sends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from haltwire.wire import messages
from haltwire.wire.messages import Hello, Mismatch, Renew, Report, Usage
from haltwire_control.screening import screen
from support.control import cut, usage, utc_now

MAILER = "agent://acme/prod/mailer"
HELLO = Hello("w-1", "host", "boot", 1, "ns", 2, "0", "e", 3)
FAR = utc_now().replace(year=9998)

GOOD = {
    "a hello": HELLO,
    "usage": Usage(1, (usage(MAILER, "i-1"),), (Mismatch("192.0.2.1", "label", None, 3),)),
    "a report": Report("K1", utc_now(), (cut(MAILER, "i-1"),)),
    "a path in any script": Report("K1", utc_now(), (cut(MAILER, "größe"),)),
}
BAD = {
    "a text for the audit log to choke on": (
        Usage(1, (), (Mismatch("x" * 10_000, "label", None, 1),)),
        "10000 characters",
    ),
    "a name of a megabyte": (replace(HELLO, proxy_id="x" * 1_000_000), "1000000 characters"),
    "a pid that SQLite cannot hold": (replace(HELLO, pid=2**70), "62 bits"),
    "a count that overflows": (Usage(1, (usage(MAILER, "i-1", bytes_up=2**63),)), "62 bits"),
    "a time that no offset can be added to": (
        Report("K1", utc_now(), (cut(MAILER, "i-1", seen_at=FAR),)),
        "the year 9998",
    ),
    "a clock of another age": (Renew(1.0, utc_now().replace(year=1), "e", 1), "the year 1"),
    "no number": (Renew(float("nan"), utc_now(), "e", 1), "nan"),
    "half a character": (replace(HELLO, host="\ud800"), "surrogates"),
}


@pytest.mark.parametrize("message", GOOD.values(), ids=GOOD)
def test_what_proxies_say(message):
    screen(message)
    screen(messages.loads(messages.dumps(message)))


@pytest.mark.parametrize(("message", "says"), BAD.values(), ids=BAD)
def test_what_they_do_not(message, says):
    with pytest.raises(ValueError, match=says):
        screen(message)


def test_what_json_can_say_is_screened_too():
    text = json.dumps({**json.loads(messages.dumps(HELLO)), "revision": 10**30})
    with pytest.raises(ValueError, match="62 bits"):
        screen(messages.loads(text))
