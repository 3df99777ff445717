"""``--table``: what is not named is not written, by whatever name it is called."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import redis
from tests.support.workers import RunningWorker

from writebehind_worker.catalog import load_catalog
from writebehind_worker.testing.wait import wait_until

TABLES = """
CREATE SCHEMA app; CREATE SCHEMA other; CREATE SCHEMA "Odd.schema";
CREATE TABLE users (id int PRIMARY KEY, name text);
CREATE TABLE secrets (id int PRIMARY KEY, name text);
CREATE TABLE app.users (id int PRIMARY KEY, name text);
CREATE TABLE other.users (id int PRIMARY KEY, name text);
CREATE TABLE "Users" (id int PRIMARY KEY, name text);
CREATE TABLE "app.users" (id int PRIMARY KEY, name text);
CREATE TABLE "Odd.schema"."Odd table" (id int PRIMARY KEY, name text);
CREATE TABLE parted (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE VIEW shown AS SELECT * FROM users;
CREATE MATERIALIZED VIEW kept AS SELECT * FROM users;
CREATE SEQUENCE numbers;
"""


@pytest.fixture
def tables(pg: psycopg.Connection[Any]) -> None:
    pg.execute(TABLES.encode())


# What is allowed → the tables that may then be written; and by which of these names.
NAMES = [
    "users", "public.users", "secrets", "app.users", "other.users", "Users", "USERS", '"users"', '"Users"',
    "users ", "Odd table", "Odd.schema.Odd table", "parted", "public.parted", "parted_low", "parent", "child",
    "shown", "kept", "numbers", "writebehind.ledger", "writebehind.dead_letters", "ledger", "pg_class",
    "pg_catalog.pg_class", "information_schema.tables", "pg_temp.users", "public.app.users", "nowhere",
    "users; DROP TABLE users", "users--", "*", "%",
]  # fmt: skip
ALLOWED: list[tuple[tuple[str, ...], dict[str, set[str]]]] = [
    (("users",), {"public.users": {"users", "public.users"}}),
    (("public.users",), {"public.users": {"users", "public.users"}}),
    (("Users",), {"public.Users": {"Users"}}),
    (("other.users",), {"other.users": {"other.users"}}),
    # A table that is found by its bare name wins over the other's full one of the same spelling.
    (("app.users",), {"public.app.users": {"app.users", "public.app.users"}}),
    (("Odd.schema.Odd table",), {"Odd.schema.Odd table": {"Odd.schema.Odd table"}}),
    (("parted",), {"public.parted": {"parted", "public.parted"}}),
    (("parted_low",), {"public.parted_low": {"parted_low"}}),
    (("parent",), {"public.parent": {"parent"}}),
    (("users", "secrets"), {"public.users": {"users", "public.users"}, "public.secrets": {"secrets"}}),
    (("shown", "kept", "numbers", "*", "%", "USERS", '"users"', "nowhere"), {}),
    (("writebehind.ledger", "ledger", "pg_catalog.pg_class", "pg_class", "information_schema.tables"), {}),
]


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("allowed", "written"), ALLOWED, ids=[" ".join(a) for a, _ in ALLOWED])
def test_only_what_is_named_may_be_written(
    allowed: tuple[str, ...], written: dict[str, set[str]], pg: psycopg.Connection[Any]
) -> None:
    catalog = load_catalog(pg_raw(pg), allowed)
    found: dict[str, set[str]] = {}
    for name in NAMES:
        table = catalog.find(name)
        if table is not None:
            found.setdefault(table.full_name, set()).add(name)
    assert found == written


@pytest.mark.usefixtures("tables")
def test_without_it_neither_views_nor_our_own_nor_system_tables_are_written(
    pg: psycopg.Connection[Any],
) -> None:
    catalog = load_catalog(pg_raw(pg))
    found = {name for name in NAMES if catalog.find(name) is not None}
    assert found == {
        "users", "public.users", "secrets", "app.users", "other.users", "Users", "Odd.schema.Odd table",
        "parted", "public.parted", "parted_low", "parent", "child", "public.app.users",
    }  # fmt: skip


def pg_raw(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The worker's connection writes parameters as ``$1``."""
    pg.cursor_factory = psycopg.RawCursor
    return pg


@pytest.mark.usefixtures("tables")
def test_a_worker_writes_to_no_other_table_and_holds_up_nothing(
    redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any], redis_client: redis.Redis
) -> None:
    for i, name in enumerate(NAMES):
        redis_client.lpush(queue, json.dumps({"table": name, "id": i, "data": {"name": "x"}}))
    redis_client.lpush(queue, json.dumps({"table": "users", "id": 99, "op": "increment", "data": {"id": 1}}))
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    with RunningWorker(**options, tables=("users", "nowhere")):
        wait_until(lambda: pg.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (32,))
    assert pg.execute("SELECT id FROM users ORDER BY id").fetchall() == [(0,), (1,)]
    for other in ("secrets", "app.users", "other.users", '"Users"', "parted", "parent", '"app.users"'):
        assert pg.execute(f"SELECT FROM {other}".encode()).rowcount == 0
    reasons = pg.execute(
        "SELECT DISTINCT sqlstate FROM writebehind.dead_letters WHERE table_name <> 'public.users'"
    )
    assert reasons.fetchall() == [("42P01",)]


@pytest.mark.usefixtures("tables")
def test_a_table_that_is_made_later_or_renamed_is_judged_by_its_name(
    redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any], redis_client: redis.Redis
) -> None:
    def put(table: str, id: int) -> None:
        redis_client.lpush(queue, json.dumps({"table": table, "id": id, "data": {"name": "x"}}))

    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    with RunningWorker(**options, tables=("users", "later")) as worker:
        worker.wait_for_role("owner")
        pg.execute("CREATE TABLE later (id int PRIMARY KEY, name text)")
        put("later", 1)
        wait_until(lambda: pg.execute("SELECT FROM later").rowcount)
        pg.execute("ALTER TABLE users RENAME TO former; ALTER TABLE secrets RENAME TO users")
        put("former", 2)
        put("users", 3)
        wait_until(lambda: pg.execute("SELECT FROM writebehind.dead_letters").rowcount)
        wait_until(lambda: pg.execute("SELECT FROM users").rowcount)
    assert pg.execute("SELECT FROM former").rowcount == 0
