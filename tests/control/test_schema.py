"""State to rows and back, for every kind of record."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control import schema
from haltwire_control.sqlite_reads import connect
from haltwire_control.state import Key, Lifting, Order, ProxyRecord, StoredReceipt, Token
from sqlite_utils import Database
from support.stores import a_receipt

NOW = datetime(2026, 11, 22, 9, 30, 0, 125000, tzinfo=timezone.utc)
MAILER = Selector.parse("agent://acme/prod/mailer~i-*")
KILL = Kill("K1", MAILER, "cut", "why", "key:ada", NOW, 3, excepted=(MAILER,))


@pytest.fixture
def database(tmp_path):
    connection = connect(tmp_path / "haltwire.db")
    schema.migrations.apply(Database(connection, execute_plugins=False))
    connection.execute("INSERT INTO meta VALUES ('epoch', 'e'), ('revision', '7')")
    yield connection
    connection.close()


def test_every_live_record_comes_back(database):
    order = Order(KILL, "Y1", 5)
    token = Token("T1", "d1", MAILER, None, NOW, "key:ada")
    key = Key("Y1", "d2", "ada", "operator", NOW, "key:admin")
    proxy = ProxyRecord("w-1", "box", "boot", 7, "pid:[1]", 100, "1", NOW)
    for record in (order, token, key, proxy):
        schema.write(database, record)
    state = schema.load_state(database, 10)
    assert (state.epoch, state.revision) == ("e", 7)
    assert state.orders == (order,)
    assert state.tokens == {"d1": token}
    assert state.keys == {"d2": key}
    assert state.proxies == {"w-1": proxy}


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


def test_migrations_are_applied_once(database):
    schema.migrations.apply(Database(database, execute_plugins=False))
    assert len(schema.migrations.applied(Database(database, execute_plugins=False))) == 1
