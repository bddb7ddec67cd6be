"""What every connection of a worker needs: whose traffic is read inside TLS."""

import pytest
from haltwire.wire.names import AgentRef
from haltwire_proxy.identity import Identity


@pytest.mark.parametrize(
    ("of_worker", "of_token", "hosts", "intercepts"),
    [
        ("tunnel", None, (), False),
        ("tunnel", "intercept", (), True),
        ("intercept", None, (), True),
        ("intercept", "tunnel", (), False),
        ("intercept", "intercept", ("*.bank.test",), False),
        ("intercept", None, ("bank.test",), True),
    ],
)
async def test_whose_traffic_is_read_inside(world, of_worker, of_token, hosts, intercepts):
    world.services.tls, world.services.tunnel_hosts = of_worker, hosts
    agent = Identity(AgentRef.parse("agent://acme/prod/x"), "i-1", "T1", of_token, True, "hwa_x")
    assert world.services.intercepts(agent, "api.bank.test") is intercepts
