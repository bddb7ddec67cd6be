"""The writer's queue: kills first, groups bounded, nothing lost at the end."""

from __future__ import annotations

import threading

import pytest
from haltwire_control.jobs import Job, Jobs
from haltwire_control.store import StoreError


def job(urgent: bool = False) -> Job:
    return Job(lambda _state: None, None, urgent, None)


def test_urgent_jobs_come_alone_and_first():
    jobs, waiting, kill = Jobs(), [job(), job()], job(urgent=True)
    for one in (*waiting, kill):
        jobs.put(one)
    assert jobs.take(10, 0) == [kill]
    assert jobs.take(10, 0) == waiting


def test_ordinary_jobs_come_in_groups():
    jobs, waiting = Jobs(), [job() for _ in range(5)]
    for one in waiting:
        jobs.put(one)
    assert jobs.take(3, 0) == waiting[:3]
    assert jobs.take(3, 0) == waiting[3:]


def test_what_did_not_fit_goes_first_the_next_time():
    jobs, waiting = Jobs(), [job() for _ in range(3)]
    jobs.put(waiting[2])
    jobs.put_back(waiting[:2])
    assert jobs.take(10, 0) == waiting


def test_an_urgent_one_that_did_not_fit_stays_urgent():
    jobs, kill = Jobs(), job(urgent=True)
    jobs.put(job())
    jobs.put_back([kill])
    assert jobs.take(10, 0) == [kill]


def test_without_jobs_it_waits_and_then_has_none():
    assert Jobs().take(10, 0.01) == []


def test_a_taker_is_woken():
    jobs, taken = Jobs(), []
    thread = threading.Thread(target=lambda: taken.append(jobs.take(10, None)))
    thread.start()
    one = job()
    jobs.put(one)
    thread.join(5)
    assert taken == [[one]]


def test_a_closed_queue_is_emptied_and_takes_no_more():
    jobs, one = Jobs(), job()
    jobs.put(one)
    jobs.close()
    with pytest.raises(StoreError):
        jobs.put(job())
    assert jobs.take(10, None) == [one]
    assert jobs.take(10, None) is None
