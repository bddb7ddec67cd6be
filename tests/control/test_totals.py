"""What a proxy says of itself is added up, and nothing that it can say does harm."""

import pytest
from haltwire_control.totals import MOST_NAMES, Totals


def test_processes_are_added_up_and_stay_when_they_have_ended():
    totals = Totals()
    totals.use("w1/7.1", {"requests": 3, "limit.agent_requests": 1})
    totals.use("w2/8.1", {"requests": 4})
    totals.end(["w2/8.1"])
    totals.use("w1/9.1", {"requests": 1})
    assert totals.sums() == {"requests": 8, "limit.agent_requests": 1}


def test_a_total_never_falls():
    totals = Totals()
    totals.use("w1", {"requests": 3})
    totals.use("w1", {"requests": 2})
    assert totals.sums() == {"requests": 3}


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"requests": -1}, id="negative"),
        pytest.param({"requests": 2**53 + 1}, id="more than a float holds"),
        pytest.param({"requests": 1.5}, id="not whole"),
        pytest.param({"requests": True}, id="no number"),
        pytest.param({"requests": "7"}, id="text"),
        pytest.param({"requests": None}, id="nothing"),
        pytest.param({"x" * 33: 1}, id="a long name"),
        pytest.param({"limit." + "x" * 33: 1}, id="a long second part"),
        pytest.param({'a"} 1\n': 1}, id="a name that would be a line of its own"),
        pytest.param({"agent://acme/prod/mailer": 1}, id="an agent's name"),
        pytest.param({"": 1}, id="no name"),
        pytest.param({7: 1}, id="a name that is no text"),
    ],
)
def test_what_makes_no_sense_is_left_out(said):
    totals = Totals()
    totals.use("w1", {**said, "leases_lost": 1})
    assert totals.sums() == {"leases_lost": 1}


def test_names_are_bounded_over_all_processes_for_ever():
    """Each is a time series that a monitoring system keeps for weeks."""
    totals = Totals()
    totals.use("w1", {"requests": 1})
    for process in range(100):
        totals.use(f"w{process}", {f"limit.x{process}_{n}": 1 for n in range(100)})
        totals.end([])
    assert len(totals.sums()) == MOST_NAMES
    totals.use("w1", {"requests": 1})
    assert totals.sums()["requests"] == 2
