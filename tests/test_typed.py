"""Typed rows: what is put is what is got, for each kind of class; and what does not fit is no answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from enum import Enum
from functools import partial
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

import attrs
import msgspec
import psycopg
import pydantic
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mypy import api as mypy
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from tests.support.workers import RunningWorker

from writebehind import AsyncWriteBehind, FlushTimeout, InvalidLoad, InvalidWrite, RowMismatch, WriteBehind
from writebehind.shape import RowShape


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Place:
    city: str
    paid: Decimal
    since: dt.timedelta
    photo: bytes | None = None
    inner: list[Place] = field(default_factory=list)


FIELDS: dict[str, Any] = {
    "id": int,
    "name": str,
    "price": Decimal,
    "weight": float,
    "ok": bool,
    "seen": dt.datetime,
    "born": dt.date,
    "at": dt.time,
    "took": dt.timedelta,
    "token": UUID,
    "blob": bytes,
    "colour": Colour,
    "maybe": Decimal | None,
    "place": Place,
    "tags": list[str],
    "prices": dict[str, Decimal],
}

AsDataclass = make_dataclass("AsDataclass", list(FIELDS.items()))
AsStruct = msgspec.defstruct("AsStruct", list(FIELDS.items()))
AsAttrs = attrs.make_class("AsAttrs", {n: attrs.field(type=t) for n, t in FIELDS.items()})
AsModel = pydantic.create_model("AsModel", **FIELDS)
KINDS: list[Any] = [AsDataclass, AsStruct, AsAttrs, AsModel]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
decimals = st.decimals(
    allow_nan=False, allow_infinity=False, places=12, min_value=-(10**20), max_value=10**20
)
durations = st.timedeltas(dt.timedelta(days=-9999), dt.timedelta(days=9999))
places = st.recursive(
    st.builds(Place, texts, decimals, durations, st.none() | st.binary(max_size=9), st.just([])),
    lambda inner: st.builds(
        Place, texts, decimals, durations, st.none() | st.binary(max_size=9), st.lists(inner, max_size=2)
    ),
    max_leaves=3,
)
VALUES = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "name": texts,
        "price": decimals,
        "weight": st.floats(allow_nan=False, allow_infinity=False),
        "ok": st.booleans(),
        "seen": st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC)),
        "born": st.dates(),
        "at": st.times(),
        "took": durations,
        "token": st.uuids(),
        "blob": st.binary(max_size=20),
        "colour": st.sampled_from(Colour),
        "maybe": st.none() | decimals,
        "place": places,
        "tags": st.lists(texts, max_size=3),
        "prices": st.dictionaries(texts, decimals, max_size=3),
    }
)
TABLE = """CREATE TABLE things (id bigint PRIMARY KEY, name text, price numeric, weight float8, ok bool,
    seen timestamptz, born date, at time, took interval, token uuid, blob bytea, colour text, maybe numeric,
    place jsonb, tags text[], prices jsonb)"""


@dataclass
class User:
    id: int
    name: str
    visits: int = 0


@dataclass
class Member:
    tenant: int
    user: str
    role: str


@pytest.fixture
def wb(connect: Callable[..., WriteBehind]) -> WriteBehind:
    return connect()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES)
def test_what_is_put_is_got(wb: WriteBehind, kind: Any, values: dict[str, Any]) -> None:
    things = wb.table(kind, name="things")
    row = kind(**values)
    things.put(row)
    assert things.get(row.id) == row
    wb.invalidate("things", row.id)
    assert things.get_many([row.id]) == [row]
    got = things.get(row.id)
    assert all(type(getattr(got, n)) is type(getattr(row, n)) for n in FIELDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=60)
@given(values=VALUES)
def test_columns_are_read_as_they_were_written(kind: Any, values: dict[str, Any]) -> None:
    shape: RowShape[Any] = RowShape(kind, ("id",), float)
    row = kind(**values)
    assert shape.row(shape.encode("t", row)) == row
    assert shape.row(shape.encode("t", shape.values("t", row))) == row


def test_rows_come_back_from_postgres_as_they_were_put(
    wb: WriteBehind, pg: psycopg.Connection[Any], options: dict[str, Any], postgres_url: str
) -> None:
    pg.execute(TABLE)
    pg.execute("SET timezone = 'UTC'")
    set_json_loads(partial(json.loads, parse_float=Decimal), pg)  # else a jsonb's numbers are floats
    seen: list[dict[str, Any]] = []

    @settings(max_examples=15, database=None)
    @given(VALUES)
    def collect(values: dict[str, Any]) -> None:
        if dt.date.min < values["born"]:
            seen.append({**values, "id": len(seen) % 1000})

    collect()
    rows = [KINDS[i % 4](**values) for i, values in enumerate(seen)]
    tables = [wb.table(kind, name="things") for kind in KINDS]
    with RunningWorker(**options):
        with wb.batch() as batch:
            for i, row in enumerate(rows):
                tables[i % 4].into(batch).put(row)
        batch.wait(20)
        loads = 0

        def load(id: int) -> Any:
            nonlocal loads
            loads += 1
            with pg.cursor(row_factory=dict_row) as cursor:
                return cursor.execute("SELECT * FROM things WHERE id = %s", [id]).fetchone()

        for i, row in enumerate(rows):
            while not wb.invalidate("things", row.id):
                pass
            assert tables[i % 4].get(row.id, load) == row
            assert tables[i % 4].get(row.id) == row  # what the load has cached
    assert loads == len(rows)


def test_each_write_is_the_untyped_one(wb: WriteBehind, redis_client: redis.Redis) -> None:
    users = wb.table(User, name="users")
    users.put(User(1, "Ada"))
    users.patch(1, name="Ada L.")
    users.patch(1, {"name": "A."})
    users.increment(1, visits=2)
    users.delete(1)
    with wb.batch() as batch:
        writes = users.into(batch)
        writes.put(User(1, "Ada"))
        writes.patch(1, name="Ada L.")
        writes.patch(1, {"name": "A."})
        writes.increment(1, visits=2)
        writes.delete(1)
    sent = [msgspec.json.decode(item) for item in redis_client.lrange(wb.keys.queue, 0, -1)][::-1]
    for message in sent:
        del message["seq"], message["ttl"]  # a time and a chance
    assert sent[:5] == sent[5:]
    assert [m.get("op", "put") for m in sent[:5]] == ["put", "patch", "patch", "increment", "delete"]
    assert sent[0]["data"] == {"id": 1, "name": "Ada", "visits": 0}


def test_a_key_of_several_fields_is_a_tuple(wb: WriteBehind) -> None:
    members = wb.table(Member, key=("tenant", "user"))
    assert members.name == "member"
    members.put(Member(1, "ada", "admin"))
    assert members.get((1, "ada")) == Member(1, "ada", "admin")
    asked: list[Any] = []

    def load(ids: list[Any]) -> dict[Any, Any]:
        asked.extend(ids)
        return {(2, "bob"): Member(2, "bob", "guest")}

    assert members.get_many([(2, "bob"), (1, "ada"), (3, "x")], load) == [
        Member(2, "bob", "guest"),
        Member(1, "ada", "admin"),
        None,
    ]
    assert asked == [(2, "bob"), (3, "x")]
    for wrong in (1, (1,), (1, 2, 3)):
        with pytest.raises(InvalidWrite, match=r"tuple \(tenant, user\)"):
            members.delete(wrong)


def test_what_does_not_fit_the_class_is_refused(wb: WriteBehind, redis_client: redis.Redis) -> None:
    users = wb.table(User)
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: users.put(Member(1, "a", "b")), "must be a User"),  # type: ignore[arg-type]
        (lambda: users.patch(1, nam="x"), "no field 'nam'; it has: id, name, visits"),
        (lambda: users.patch(1, id=2), "key cannot be changed"),
        (lambda: users.patch(1, name=5), r"user\.name: Expected `str`"),
        (lambda: users.patch(1), "at least one"),
        (lambda: users.increment(1, nam=5), "no field"),
        (lambda: users.increment(1, visits="x"), "must be a number"),
    ]
    for call, text in wrong:
        with pytest.raises(InvalidWrite, match=text):
            call()
    assert not redis_client.exists(wb.keys.queue)


def test_a_class_that_cannot_be_a_row_is_refused(wb: WriteBehind) -> None:
    odd = make_dataclass("Odd", [("id", int), ("either", int | list[bytes | str])])
    strange = make_dataclass("Strange", [("id", int), ("either", bytes | str)])
    for kind, key, text in (
        (User, "uuid", "no field 'uuid'.*out of: id, name, visits"),
        (User, (), "has no key"),
        (dict, "id", "no dataclass"),
        (odd, "id", r"Odd\.either"),
        (strange, "id", r"Strange\.either"),
    ):
        with pytest.raises(TypeError, match=text):
            wb.table(kind, key=key)


def test_a_value_that_cannot_be_written_is_an_invalid_write(
    wb: WriteBehind, redis_client: redis.Redis, queue: str
) -> None:
    class Late(msgspec.Struct):
        id: int
        free: Any = msgspec.UNSET

    endless: list[Any] = []
    endless.append(endless)
    late = wb.table(Late)
    bare = Late(1)
    del bare.free
    nameless = Late(1)
    del nameless.id
    noon = dt.time(12, tzinfo=dt.timezone(dt.timedelta(seconds=1)))
    rows = [Late(1), bare, *(Late(1, x) for x in (endless, object(), 1j, {b"a": 1}, [noon], float("nan")))]
    rows.append(Late(1, pydantic.SecretStr("hunter2")))
    rows.append(Late(1, {UUID(int=1): 1, str(UUID(int=1)): 2}))
    for row in rows:
        with pytest.raises(InvalidWrite, match=r"late\.free"):
            late.put(row)
        with pytest.raises(InvalidWrite, match=r"late\.free"), wb.batch() as batch:
            late.into(batch).put(row)
        with pytest.raises(InvalidLoad, match=r"late\.free"):
            late.get(1, lambda _, row=row: row)  # type: ignore[misc]
        with pytest.raises(InvalidLoad, match=r"late\.free"):
            late.get_many([1], lambda _, row=row: [row])  # type: ignore[misc]
    for value in (endless, object(), msgspec.UNSET):
        with pytest.raises(InvalidWrite, match=r"late\.free"):
            late.patch(1, free=value)
        with pytest.raises(InvalidLoad, match=r"late\.free"):
            late.get(1, lambda _, value=value: {"id": 1, "free": value})  # type: ignore[misc]
    with pytest.raises(InvalidWrite, match=r"late\.id"):
        late.put(nameless)
    assert not redis_client.exists(wb.keys.queue, f"{queue}:late:1")


def test_writes_wait(wb: WriteBehind, pg: psycopg.Connection[Any], options: dict[str, Any]) -> None:
    pg.execute('CREATE TABLE "user" (id int PRIMARY KEY, name text, visits int)')
    users = wb.table(User)
    calls: list[Callable[..., Any]] = [
        lambda **how: users.put(User(1, "Ada"), **how),
        lambda **how: users.patch(1, name="A.", **how),
        lambda **how: users.patch(1, {"name": "A."}, **how),
        lambda **how: users.increment(1, visits=2, **how),
        lambda **how: users.delete(1, **how),
    ]
    for call in calls:
        with pytest.raises(FlushTimeout) as caught:
            call(wait=0.01)
        assert caught.value.receipt is not None
    with RunningWorker(**options):
        for call, row in zip(
            calls, [(1, "Ada", 0), (1, "A.", 0), (1, "A.", 0), (1, "A.", 2), None], strict=True
        ):
            call(durability="committed")
            assert pg.execute('SELECT * FROM "user"').fetchone() == row


def test_a_field_named_as_an_argument_is_given_by_a_mapping(wb: WriteBehind) -> None:
    @dataclass
    class Job:
        id: int
        name: str
        wait: int | None
        durability: float = 0

    jobs = wb.table(Job)
    jobs.put(Job(1, "a", 5))
    wrong: list[Callable[[], Any]] = [
        lambda: jobs.patch(1, wait=3),
        lambda: jobs.patch(1, name="b", wait=None),
        lambda: jobs.patch(1, {"durability": 1}, name="b"),
        lambda: jobs.increment(1, wait=3),
    ]
    for call in wrong:
        with pytest.raises(InvalidWrite, match="give the fields as a mapping"):
            call()
    assert jobs.get(1) == Job(1, "a", 5)
    with pytest.raises(FlushTimeout):
        jobs.patch(1, {"wait": None}, wait=0.01)
    assert jobs.get(1) == Job(1, "a", None)
    with wb.batch() as batch:
        jobs.into(batch).patch(1, wait=7)
    assert jobs.get(1) == Job(1, "a", 7)


def test_many_are_invalidated(wb: WriteBehind) -> None:
    members = wb.table(Member, key=("tenant", "user"))
    members.get((1, "ada"), lambda _: Member(1, "ada", "admin"))
    members.put(Member(2, "bob", "guest"))
    assert members.invalidate_many([(1, "ada"), (2, "bob"), (3, "eve")]) == [True, False, True]
    assert members.get_many([(1, "ada"), (2, "bob")]) == [None, Member(2, "bob", "guest")]
    with pytest.raises(InvalidWrite, match="an id is a tuple"):
        members.invalidate_many([1])


def test_an_id_is_any_value_that_a_field_can_have(wb: WriteBehind) -> None:
    @dataclass
    class Host:
        address: IPv4Address
        seen: dt.datetime
        name: str

    hosts = wb.table(Host, key=("address", "seen"))
    id = (IPv4Address("10.0.0.1"), dt.datetime(1880, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=561))))
    hosts.put(Host(*id, "a"))
    hosts.patch(id, name="b")
    assert hosts.get(id) == Host(*id, "b")
    by_address = wb.table(Host, name="by_address", key="address")
    by_address.put(Host(*id, "c"))
    assert by_address.get(id[0]) == Host(*id, "c")  # type: ignore[arg-type]


# Rows of another shape.


def test_many_rows_that_do_not_fit_are_loaded_at_once(
    wb: WriteBehind, pg: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    pg.execute('CREATE TABLE "user" (id int PRIMARY KEY, name text, visits int)')
    users = wb.table(User)
    asked: list[list[int]] = []

    def load(ids: list[int]) -> list[User]:
        asked.append(ids)
        return [User(i, "loaded") for i in ids]

    with RunningWorker(**options):
        for i in range(30):
            wb.put("user", i, {"id": i, "name": f"n{i}"} | ({"visits": 1} if i % 3 == 0 else {}))
        found = users.get_many(range(32), load, timeout=10)
    fits = {i for i in range(30) if i % 3 == 0}
    assert found == [User(i, f"n{i}", 1) if i in fits else User(i, "loaded") for i in range(32)]
    assert sorted(i for ids in asked for i in ids) == sorted(set(range(32)) - fits)
    assert len(asked) == 2  # those that nobody has cached, and those that do not fit
    assert users.get_many(range(32)) == found


@pytest.mark.parametrize("data", [{"name": "Ada"}, {"id": 1, "name": 7, "visits": 0}], ids=["part", "type"])
def test_a_cached_row_that_does_not_fit_is_a_miss(
    wb: WriteBehind, pg: psycopg.Connection[Any], options: dict[str, Any], data: dict[str, Any]
) -> None:
    pg.execute('CREATE TABLE "user" (id int PRIMARY KEY, name text, visits int)')
    users = wb.table(User)
    wb.put("user", 1, data)
    with pytest.raises(RowMismatch, match=r"User\.(id|name)") as caught:
        users.get(1)
    assert caught.value.field == ("id" if "id" not in data else "name")
    with pytest.raises(RowMismatch):
        users.get_many([1])
    with pytest.raises(FlushTimeout):  # the write is pending: what a loader reads would be older
        users.get(1, lambda _: User(1, "old"), timeout=0.05)
    with RunningWorker(**options):
        assert users.get(1, lambda _: User(1, "new"), timeout=10) == User(1, "new")
        assert users.get(1) == User(1, "new")
        wb.put("user", 2, data | ({"id": 2} if "id" in data else {}))
        assert users.get_many([1, 2], lambda ids: [User(i, "n") for i in ids], timeout=10) == [
            User(1, "new"),
            User(2, "n"),
        ]


def test_a_loaded_row_that_does_not_fit_is_an_error_and_not_cached(
    wb: WriteBehind, redis_client: redis.Redis, queue: str
) -> None:
    users = wb.table(User)
    for wrong in ({"id": 1}, {"id": 1, "name": 2, "visits": 0}, 5, Member(1, "a", "b")):
        with pytest.raises(InvalidLoad):
            users.get(1, lambda _, wrong=wrong: wrong)  # type: ignore[misc]
    assert not redis_client.exists(f"{queue}:user:1")


def test_a_model_checks_what_it_is_made_of_and_has_aliases(wb: WriteBehind) -> None:
    class Address(pydantic.BaseModel):
        photo: bytes
        paid: Decimal

    class Account(pydantic.BaseModel):
        id: int = pydantic.Field(alias="accountId")
        age: int = pydantic.Field(gt=0)
        home: Address | None = None

    accounts = wb.table(Account)
    row = Account(accountId=1, age=5, home=Address(photo=b"\xff", paid=Decimal("0.10000000000000000000001")))
    accounts.put(row)
    assert accounts.get(1) == row
    wb.put("account", 2, {"id": 2, "age": -1, "home": None})
    with pytest.raises(RowMismatch, match="greater than 0"):
        accounts.get(2)


def test_the_async_table_does_the_same(redis_url: str, queue: str) -> None:
    async def job() -> None:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb:
            users = wb.table(User)
            await users.put(User(1, "Ada"))
            assert await users.get(1) == User(1, "Ada")

            async def load(id: int) -> User:
                return User(id, "loaded")

            assert await users.get(2, load) == User(2, "loaded")
            assert await users.get_many([1, 3]) == [User(1, "Ada"), None]
            assert await users.invalidate(2)
            async with wb.batch() as batch:
                users.into(batch).put(User(4, "Eve"))
            assert await users.get(4) == User(4, "Eve")
            await users.delete(4)
            assert await users.get(4) is None
            await users.patch(1, name="x")
            await users.increment(1, visits=1)
            calls: list[Callable[[], Any]] = [
                lambda: users.put(User(1, "Ada"), wait=0.01),
                lambda: users.patch(1, name="x", wait=0.01),
                lambda: users.increment(1, visits=1, wait=0.01),
                lambda: users.delete(1, durability="committed", wait=0.01),
            ]
            for call in calls:
                with pytest.raises(FlushTimeout):
                    await call()
            assert await users.invalidate_many([1, 2]) == [False, True]

    asyncio.run(job())


def test_attrs_and_pydantic_are_not_imported_for_a_dataclass() -> None:
    code = (
        "import sys, dataclasses\n"
        "from writebehind.shape import RowShape\n"
        "@dataclasses.dataclass\n"
        "class A:\n    id: int\n"
        "RowShape(A, ('id',), float).row({'id': b'1'})\n"
        "assert not {'attrs', 'attr', 'pydantic'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


RIGHT_AND_WRONG = """
from dataclasses import dataclass
from typing import assert_type
from writebehind import AsyncReceipt, AsyncWriteBehind, Receipt, WriteBehind

@dataclass
class User:
    id: int
    name: str

@dataclass
class Other:
    id: int

def sync(wb: WriteBehind) -> None:
    users = wb.table(User, key="id")
    assert_type(users.put(User(1, "a")), Receipt)
    assert_type(users.get(1), User | None)
    assert_type(users.get_many([1]), list[User | None])
    users.get(1, lambda id: User(1, "a"))
    users.get(1, lambda id: {"id": 1})
    users.put(Other(1))  # wrong
    users.get([1])  # wrong
    users.get(1, lambda id: Other(1))  # wrong
    users.patch(object(), name="x")  # wrong
    with wb.batch() as batch:
        users.into(batch).put(Other(1))  # wrong

async def later(wb: AsyncWriteBehind) -> None:
    users = wb.table(User)
    assert_type(await users.put(User(1, "a")), AsyncReceipt)
    assert_type(await users.get(1), User | None)
    assert_type(await users.get_many([1]), list[User | None])
    await users.put(Other(1))  # wrong
"""


def test_mypy_knows_what_is_put_and_got(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "application.py"
    code.write_text(RIGHT_AND_WRONG)
    root = str(code.parents[0])
    monkeypatch.chdir(root)
    import writebehind

    monkeypatch.setenv("MYPYPATH", str(next(iter(writebehind.__path__)) + "/.."))
    out, err, _ = mypy.run(["--strict", "--config-file=", "--no-error-summary", str(code)])
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    wrong = {i for i, line in enumerate(RIGHT_AND_WRONG.splitlines(), 1) if line.endswith("# wrong")}
    assert found == wrong, out + err
