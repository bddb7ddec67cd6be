"""Where the control server is: its name, and each address at which this worker has found it, in every spelling."""

from ipaddress import ip_address

import pytest
from aiohttp.abc import AbstractResolver
from haltwire.wire.messages import Settings
from haltwire.wire.names import AgentRef
from haltwire_proxy import control_host
from haltwire_proxy.control_host import ControlHost, LearningResolver
from haltwire_proxy.destinations import Dialer, Rules, canonical_host

ELSEWHERE = "203.0.113.80"
AGENT = AgentRef.parse("agent://acme/prod/mailer")


def found(url: str, *addresses: str) -> ControlHost:
    control = ControlHost(url)
    for address in addresses:
        control.found(address)
    return control


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://control.example:8081", "control.example", 8081),
        ("https://CONTROL.example.:8081", "control.example", 8081),
        ("https://control.example", "control.example", 443),
        ("http://control.example/below", "control.example", 80),
        ("https://203.0.113.80:1", ELSEWHERE, 1),
        ("https://[2001:DB8:0:0::1]:1", "2001:db8::1", 1),
    ],
)
def test_it_is_known_by_its_name_and_port(url, host, port):
    control = ControlHost(url)
    assert control.is_named(canonical_host(host), port)
    assert not control.is_named(host, port + 1)
    assert not control.is_named("other.example", port)


SPELLINGS = [
    ELSEWHERE,
    "::ffff:203.0.113.80",
    "::203.0.113.80",
    "64:ff9b::203.0.113.80",
    "2002:cb00:7150::1",
]


@pytest.mark.parametrize("beyond", [False, True], ids=["loopback", "beyond"])
@pytest.mark.parametrize("address", SPELLINGS)
def test_its_address_is_refused_in_every_spelling_also_in_an_opened_range(address, beyond):
    """Without the control server in `Rules._is_own` none of these rows was refused."""
    from ipaddress import ip_network

    opened = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    rules = Rules(beyond, opened, control=found("https://control.example:8081", ELSEWHERE))
    refusal = rules.check([ip_address(address)], 8081)
    assert refusal is not None
    assert "is haltwire itself" in refusal.message
    if beyond:
        assert rules.check([ip_address("203.0.113.81")], 8081) is None
    assert rules.check([ip_address(ELSEWHERE)], 8082) is None


def test_one_of_several_answers_is_enough():
    rules = Rules(False, control=found("https://control.example:8081", ELSEWHERE))
    refusal = rules.check([ip_address("198.51.100.1"), ip_address(ELSEWHERE)], 8081)
    assert refusal is not None


def test_one_on_this_host_is_at_all_of_its_addresses():
    """It may listen on all of them, of which we use one."""
    control = found("https://control.example:8081", "127.0.0.1")
    for address in ("127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::"):
        assert control.is_at(ip_address(address), 8081)
    assert not found("https://control.example:8081", ELSEWHERE).is_at(ip_address("127.0.0.1"), 8081)


def test_what_it_announces_is_refused_at_its_port_and_at_the_urls():
    """Behind a balancer the port in the URL is another one than it listens on."""
    control = ControlHost("https://control.example")
    settings = Settings(1000, ("10.9.0.2", "2001:db8::80"), 8081)
    control.announced(settings)
    for address in ("10.9.0.2", "2001:db8::80"):
        assert control.is_at(ip_address(address), 8081)
        assert control.is_at(ip_address(address), 443)
        assert not control.is_at(ip_address(address), 80)
    control.announced(Settings(1000))
    assert not control.is_at(ip_address("10.9.0.2"), 8081)


def test_an_address_that_two_machines_have_closes_nothing_else_here():
    """Such as the bridge of a container engine: what listens here on that port is not the control server."""
    control = ControlHost("https://control.example:8081")
    control.announced(Settings(1000, ("127.0.0.77",), 8081))
    assert control.is_at(ip_address("127.0.0.77"), 8081)
    assert not control.is_at(ip_address("127.0.0.1"), 8081)


def test_the_latest_addresses_are_kept(monkeypatch):
    monkeypatch.setattr(control_host, "ADDRESSES_KEPT", 2)
    control = found("https://c.example:1", "192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3")
    at = [n for n in (1, 2, 3) if control.is_at(ip_address(f"192.0.2.{n}"), 1)]
    assert at == [1, 3]


class Names(AbstractResolver):
    closed = False

    async def resolve(self, host, port=0, family=0):
        return [
            {
                "hostname": host,
                "host": ELSEWHERE,
                "port": port,
                "family": family,
                "proto": 0,
                "flags": 0,
            }
        ]

    async def close(self):
        self.closed = True


async def test_what_the_link_looks_up_agents_no_longer_reach():
    """An alias is a name that we do not know, of an address that we do."""
    control, names = ControlHost("https://control.example:8081"), Names()
    resolver = LearningResolver(control, names)
    assert not control.is_at(ip_address(ELSEWHERE), 8081)
    await resolver.resolve("control.example", 8081)
    assert control.is_at(ip_address(ELSEWHERE), 8081)

    def alias(host, port):
        return [(2, (ELSEWHERE, port))]

    dialer = Dialer(Rules(False, control=control), alias)
    for host in ("control.example", "alias.example", ELSEWHERE, "::ffff:cb00:7150"):
        refusal = await dialer.dial(host, 8081, AGENT, None)
        assert "is haltwire itself" in refusal.message, host
    dialer.close()
    await resolver.close()
    assert names.closed
