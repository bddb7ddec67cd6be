"""State to rows and back, for every kind of record."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control import schema
from haltwire_control.ends import NO_ENDS, Ends
from haltwire_control.sqlite_reads import connect
from haltwire_control.state import (
    Key,
    Lifting,
    LongestLease,
    Note,
    Order,
    ProxyRecord,
    StoredReceipt,
    StoredResume,
    Token,
)
from sqlite_utils import Database
from support.stores import a_receipt

NOW = datetime(2026, 11, 22, 9, 30, 0, 125000, tzinfo=timezone.utc)
MAILER = Selector.parse("agent://acme/prod/mailer~i-*")
KILL = Kill("K1", MAILER, "cut", "why", "key:ada", NOW, 3, excepted=(MAILER,))
DRAIN = replace(KILL, kill_id="K2", mode="drain", grace_s=0.5, expires_at=NOW, revision=4)
HOLD = replace(KILL, kill_id="K3", mode="hold", hold_until=NOW, revision=5)


@pytest.fixture
def database(tmp_path):
    connection = connect(tmp_path / "haltwire.db", create=True)
    schema.migrations.apply(Database(connection, execute_plugins=False))
    connection.execute("INSERT INTO meta VALUES ('epoch', 'e'), ('revision', '7')")
    yield connection
    connection.close()


def test_every_live_record_comes_back(database):
    orders = (
        Order(KILL, "Y1", 5),
        Order(DRAIN, "Y1", 5, ends=Ends("boot", 3600.123456789)),
        Order(HOLD, "Y1", 5, ends=Ends("boot", None, 0.5)),
    )
    token = Token("T1", "d1", MAILER, None, NOW, "key:ada")
    key = Key("Y1", "d2", "ada", "operator", NOW, "key:admin")
    proxy = ProxyRecord(
        "w-1", "box", "boot", 7, "pid:[1]", 100, "1", NOW, None, "refuse", agent_residual_max=4096
    )
    for record in (*orders, token, key, proxy, LongestLease(1000), LongestLease(5000)):
        schema.write(database, record)
    state = schema.load_state(database, 10)
    assert (state.epoch, state.revision) == ("e", 7)
    assert state.orders == orders
    assert state.tokens == {"d1": token}
    assert state.keys == {"d2": key}
    assert state.proxies == {"w-1": proxy}
    assert state.longest_lease_ms == 5000


def test_an_end_that_is_no_number_is_said_not_met_later(database):
    schema.write(database, Order(DRAIN, "Y1", 5, ends=Ends("boot", 3600.0)))
    database.execute("UPDATE orders SET expires_boot_s = 'soon'")
    with pytest.raises(ValueError):
        schema.load_state(database, 10)


def test_what_has_ended_is_kept_but_is_not_state(database):
    lifted = Order(KILL, "Y1", 5, Lifting(6, NOW, "key:bob", "fixed"))
    schema.write(database, lifted)
    schema.write(database, Token("T1", "d1", MAILER, None, NOW, "key:ada", NOW, "key:bob"))
    schema.write(database, Key("Y1", "d2", "ada", "viewer", NOW, "key:admin", NOW, "key:bob"))
    schema.write(database, ProxyRecord("w-1", "box", "boot", 7, "pid:[1]", 100, "1", NOW, NOW))
    state = schema.load_state(database, 10)
    assert (state.orders, state.lifted) == ((), (lifted,))
    assert not state.tokens
    assert not state.keys
    assert not state.proxies
    assert database.execute("SELECT count(*) FROM tokens").fetchone()[0] == 1


def test_only_the_latest_lifted_orders_are_loaded(database):
    for number in range(5):
        kill = Kill(f"K{number}", MAILER, "cut", None, "key:ada", NOW, number)
        schema.write(database, Order(kill, None, number, Lifting(10 + number, NOW, "x", None)))
    assert [o.kill.kill_id for o in schema.load_state(database, 2).lifted] == ["K3", "K4"]


def test_a_receipt_comes_back(database):
    receipt = a_receipt("K1", "agent://acme/prod/mailer")
    schema.write(database, StoredReceipt(receipt))
    text = database.execute("SELECT receipt FROM receipts").fetchone()[0]
    assert schema.receipt_of(text) == receipt
    assert schema.receipt_of(None) is None


def test_the_receipt_of_a_resume_comes_back_by_its_revision(database):
    receipt = a_receipt("K1", "agent://acme/prod/mailer")
    for _ in range(2):
        schema.write(database, StoredResume(7, receipt))
    ((revision, text),) = database.execute("SELECT revision, receipt FROM resumes").fetchall()
    assert (revision, schema.receipt_of(text)) == (7, receipt)


def test_notes_are_all_kept(database):
    written = [Note("K1", NOW, "key:ada", text) for text in ("one", "one")]
    for note in written:
        schema.write(database, note)
    assert [schema.note_of(row) for row in database.execute("SELECT * FROM notes")] == written


def test_migrations_are_applied_once(database):
    schema.migrations.apply(Database(database, execute_plugins=False))
    applied = schema.migrations.applied(Database(database, execute_plugins=False))
    assert [m.name for m in applied] == [name for name in vars(schema) if name.startswith("m0")]


def test_a_proxy_of_an_earlier_version_stops_beyond_its_lease(tmp_path):
    connection = connect(tmp_path / "old.db", create=True)
    old = Database(connection, execute_plugins=False)
    schema.migrations.apply(old, stop_before="m003_leases")
    connection.execute(
        "INSERT INTO proxies (proxy_id, host, boot_id, pid, pid_namespace, started_ticks, version, first_seen_at) "
        "VALUES ('w-1', 'box', 'boot', 7, 'pid:[1]', 100, '1', '2026-11-22T09:30:00Z')"
    )
    connection.execute("INSERT INTO meta VALUES ('epoch', 'e'), ('revision', '7')")
    schema.migrations.apply(old)
    state = schema.load_state(connection, 10)
    proxy = state.proxies["w-1"]
    assert (proxy.on_stale, proxy.stops_when_stale, proxy.agent_residual_max) == (
        "hold",
        True,
        None,
    )
    assert state.longest_lease_ms == 0
    connection.close()


def test_a_proxy_of_before_is_one_that_was_started_with_its_control_server(tmp_path):
    """There was no other: `haltwire proxy` came with the column."""
    connection = connect(tmp_path / "old.db", create=True)
    old = Database(connection, execute_plugins=False)
    schema.migrations.apply(old, stop_before="m005_keys_of_proxies")
    connection.execute(
        "INSERT INTO proxies (proxy_id, host, boot_id, pid, pid_namespace, started_ticks, version, first_seen_at) "
        "VALUES ('vm-1', 'vm', 'boot', 7, 'ns', 1, '0', '2026-11-22T09:30:00.000000Z')"
    )
    connection.execute("INSERT INTO meta (name, value) VALUES ('epoch', 'e'), ('revision', '0')")
    schema.migrations.apply(old)
    assert schema.load_state(connection, 10).proxies["vm-1"].key_id is None
    connection.close()


def test_a_file_of_the_first_version_is_brought_up_with_its_events(tmp_path):
    connection = connect(tmp_path / "old.db", create=True)
    old = Database(connection, execute_plugins=False)
    schema.migrations.apply(old, stop_before="m002_modes")
    connection.execute(
        "INSERT INTO orders (kill_id, selector, mode, actor, created_at, revision, changed_revision, excepted) "
        "VALUES ('K1', 'agent://acme/prod/mailer', 'cut', 'key:ada', '2026-11-22T09:30:00Z', 1, 1, '[]')"
    )
    rows = [
        (1, "kill.issued", '{"kill_id":"K1"}'),
        (2, "token.created", '{"kill_id":"K1"}'),
        (3, "resume.issued", '{"carved_out_of":["K3"],"lifted":["K1","K2"]}'),
        (4, "kill.issued", "changed by hand"),
    ]
    for seq, kind, details in rows:
        connection.execute(
            "INSERT INTO events (seq, event_id, event_type, details) VALUES (?, ?, ?, ?)",
            (seq, f"E{seq}", kind, details),
        )
    schema.migrations.apply(old)
    found = connection.execute("SELECT kill_id, seq FROM kill_events ORDER BY kill_id, seq")
    assert [tuple(row) for row in found] == [("K1", 1), ("K1", 3), ("K2", 3), ("K3", 3)]
    order = schema.order_of(connection.execute("SELECT * FROM orders").fetchone())
    assert (order.kill.grace_s, order.kill.hold_until) == (None, None)
    assert order.ends == NO_ENDS
    connection.close()
