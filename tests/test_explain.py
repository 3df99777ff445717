"""`writebehind explain`: a write is found at each of its stations, and what is said of it is true."""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from typing import Any

import psycopg
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.reader import begin_fill
from tests.support.rows import DOWN_POSTGRES, DOWN_REDIS, Rows

from writebehind import WriteBehind, WriteRejected
from writebehind.identity import canonical
from writebehind_worker.explain import read_id
from writebehind_worker.pause import pause
from writebehind_worker.row_search import RowMatcher, search
from writebehind_worker.testing.wait import wait_until


@pytest.fixture(autouse=True)
def users(pg: psycopg.Connection[Any]) -> None:
    pg.execute("CREATE TABLE users (id bigint PRIMARY KEY, name text, email text UNIQUE)")
    pg.execute("CREATE TABLE pages (path text PRIMARY KEY, views bigint)")
    pg.execute('CREATE TABLE lines ("order" int, line uuid, n int, PRIMARY KEY (line, "order"))')


def raw(rows: Rows, message: dict[str, Any] | bytes) -> None:
    rows.client.lpush(rows.queue, message if isinstance(message, bytes) else json.dumps(message))


def outcome(found: dict[str, Any]) -> tuple[str, int]:
    return found["outcome"], found["exit_code"]


# The stations of a write.


def test_a_row_that_nobody_has_written(rows: Rows) -> None:
    found = rows.explain("users", "1")
    assert outcome(found) == ("consistent", 0)
    assert found["cache"]["kind"] == "absent"
    assert (found["exists"], found["pending"]["writes"]) == (False, [])
    assert "Postgres has no such row, the cache none" in found["verdict"]
    rows.pg.execute("INSERT INTO users VALUES (1, 'Ada')")
    assert "the row is not cached" in rows.explain("users", "1")["verdict"]


def test_an_id_that_is_no_value_of_the_keys_type(rows: Rows) -> None:
    says = "'abc' is no value of bigint, the type of public.users.id"
    found = rows.explain("users", "abc")
    assert outcome(found) == ("consistent", 0)
    assert found["verdict"] == f"There can be no such row: {says}. No write of it waits."
    assert f"postgres     {says}" in rows.run("explain", "users", "abc", "--prefix", rows.prefix).output
    composite = rows.explain("lines", json.dumps({"order": 99999999999, "line": str(uuid.UUID(int=1))}))
    assert composite["no_value"] == "'99999999999' is no value of integer, the type of public.lines.order"
    raw(rows, {"table": "users", "id": "abc", "data": {"name": "x"}})
    rows.flush()
    found = rows.explain("users", "abc")
    assert outcome(found) == ("rejected", 1)
    assert (found["exists"], found["no_value"]) == (False, says)
    assert rows.explain("users", "1")["no_value"] is None


def test_in_the_queue(rows: Rows) -> None:
    for i in range(1, 4):
        rows.wb.put("users", i, {"name": "x"})
    rows.wb.patch("users", 2, {"email": "secret@example.com"})
    found = rows.explain("users", "2")
    assert outcome(found) == ("pending", 0)
    first, second = found["pending"]["writes"]
    assert (first["op"], first["ahead"], first["columns"]) == ("put", 1, ["name"])
    assert (second["op"], second["ahead"], second["columns"]) == ("patch", 3, ["email"])
    assert first["seq"] < second["seq"] == found["cache"]["seq"]
    assert found["cache"]["standing"] == "pending"
    assert found["cache"]["expires_in_s"] is None
    assert "2 writes wait; the oldest is" in found["verdict"]
    assert "1 write is ahead of it. Why it waits: no worker runs." in found["verdict"]
    assert "secret" not in json.dumps(found)


def test_values_are_shown_only_if_asked_for(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "secret one"})
    rows.flush()
    rows.wb.patch("users", 1, {"name": "secret two"})
    for arguments in (["explain"], ["explain", "--json"]):
        asked = [*arguments, "users", "1", "--prefix", rows.prefix]
        assert "secret" not in rows.run(*asked).output
        shown = rows.run(*asked, "--values").output
        assert "secret one" in shown  # of Postgres
        assert shown.count("secret two") >= 2  # of the cache, and of the message


def test_in_a_frozen_batch(rows: Rows) -> None:
    for i in range(10):
        rows.wb.put("users", i, {"name": "x"})
    with psycopg.connect(rows.options["postgres_url"]) as other, rows.process(batch_size=4):
        other.execute("LOCK TABLE users IN SHARE MODE")
        wait_until(lambda: rows.client.llen(rows.keys.inflight) >= 2)
        found = rows.explain("users", "6")
        (write,) = found["pending"]["writes"]
        assert (write["position"], write["size"], write["ahead"]) == (3, 4, 6)
        assert write["batch"] == int(rows.client.lrange(rows.keys.inflight, 1, 1)[0])
        assert outcome(found) == ("pending", 0)
        text = rows.run("explain", "users", "6", "--prefix", rows.prefix).output
        assert "3rd of 4" in text
        other.rollback()


def test_a_table_that_a_migration_has_locked(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    with psycopg.connect(rows.options["postgres_url"]) as other:
        other.execute("LOCK TABLE users")
        found = rows.explain("users", "1")
        assert outcome(found) == ("pending", 0)
        assert "public.users cannot be read now" in found["row_error"]
        rows.client.delete(rows.queue, found["cache_key"])
        assert outcome(rows.explain("users", "1")) == ("unknown", 2)
        other.rollback()


@pytest.mark.parametrize("point", ["settle:before:1", "acknowledge:before:1"])
def test_in_postgres_but_not_acknowledged(rows: Rows, point: str) -> None:
    for i in range(3):
        rows.wb.put("users", i, {"name": "x"})
    with rows.process(point) as worker:
        worker.wait_for_end()
    found = rows.explain("users", "1")
    (write,) = found["pending"]["writes"]
    assert (write["is_committed"], write["position"], write["size"]) == (True, 2, 3)
    assert outcome(found) == ("consistent", 0)
    assert "about to be acknowledged" in found["verdict"]
    rows.flush()
    found = rows.explain("users", "1")
    assert found["pending"]["writes"] == []
    assert found["verdict"] == "All writes are in Postgres, and the cache agrees."


def test_settled(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    rows.wb.put("users", 2, {"name": "Bob"})
    rows.wb.delete("users", 2)
    rows.flush()
    found = rows.explain("users", "1")
    assert outcome(found) == ("consistent", 0)
    assert found["cache"]["standing"] == "row"
    assert 0 < found["cache"]["expires_in_s"] <= 3600
    assert found["ledger"]["applied_seq"] >= found["cache"]["seq"]
    assert found["verdict"] == "All writes are in Postgres, and the cache agrees."
    gone = rows.explain("users", "2")
    assert (gone["cache"]["kind"], gone["exists"], outcome(gone)) == ("tombstone", False, ("consistent", 0))


def test_rejected_then_superseded(rows: Rows) -> None:
    rows.wb.put("users", 1, {"email": "ada@example.com"})
    with rows.process():
        with pytest.raises(WriteRejected):
            rows.wb.put("users", 2, {"email": "ada@example.com"}).wait(10)
        found = rows.explain("users", "2")
        (letter,) = found["dead_letters"]
        assert (letter["sqlstate"], letter["is_superseded"]) == ("23505", False)
        assert outcome(found) == ("rejected", 1)
        assert f"(dead letter {letter['id']}: 23505 unique_violation)" in found["verdict"]
        assert f"`writebehind dead show {letter['id']}`" in found["verdict"]
        rows.wb.put("users", 2, {"email": "bob@example.com"}).wait(10)
        wait_until(lambda: rows.explain("users", "2")["cache"]["expires_in_s"])
        found = rows.explain("users", "2")
        assert [letter["is_superseded"] for letter in found["dead_letters"]] == [True]
        assert outcome(found) == ("consistent", 0)


def test_rejected_and_one_more_waits(rows: Rows) -> None:
    raw(rows, {"table": "users", "id": 2, "data": {"nonsense": 1}})
    rows.flush()
    rows.wb.put("users", 2, {"name": "x"})
    found = rows.explain("users", "2")
    assert outcome(found) == ("rejected", 1)
    assert "1 write waits" in found["verdict"]


def test_a_write_that_the_worker_will_refuse_says_so_before(rows: Rows) -> None:
    raw(rows, {"table": "users", "id": 2, "op": "patch", "data": {}})
    (write,) = rows.explain("users", "2")["pending"]["writes"]
    assert "`data` is empty" in write["fault"]


def test_the_row_was_changed_behind_the_cache(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada", "email": "ada@example.com"})
    rows.flush()
    rows.pg.execute("UPDATE users SET name = 'Eve'")
    found = rows.explain("users", "1")
    assert outcome(found) == ("differs", 1)
    assert found["difference"] == {"fault": "columns", "columns": ["name"]}
    assert "somebody changed the row behind the cache" in found["verdict"]
    assert "`writebehind verify --all --repair` deletes it" in found["verdict"]
    rows.pg.execute("DELETE FROM users")
    assert rows.explain("users", "1")["difference"]["fault"] == "missing"


def test_a_raw_message_has_no_seq_and_leaves_the_cache_behind(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    rows.flush()
    raw(rows, {"table": "public.users", "id": "1", "data": {"name": "raw"}})
    found = rows.explain("users", "1")
    (write,) = found["pending"]["writes"]
    assert (write["seq"], write["age_s"]) == (None, None)
    assert "it is of unknown age" in found["verdict"]
    rows.flush()
    assert outcome(rows.explain("users", "1")) == ("differs", 1)


def test_an_item_that_vanished_from_the_queue(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    rows.client.delete(rows.queue)
    found = rows.explain("users", "1")
    assert outcome(found) == ("differs", 1)
    assert "neither in the queue nor in Postgres" in found["verdict"]


def test_an_entry_that_would_never_expire(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    rows.flush()
    rows.client.persist(rows.name("users:1"))
    found = rows.explain("users", "1")
    assert outcome(found) == ("differs", 1)
    assert "no time to live" in found["verdict"]


def test_why_it_waits_is_said(rows: Rows) -> None:
    pause(rows.client, rows.keys, "a migration")
    rows.wb.put("users", 1, {"name": "Ada"})
    assert "paused by an operator: a migration" in rows.explain("users", "1")["verdict"]


def test_states_of_a_reader(rows: Rows) -> None:
    rows.wb.get("users", 1, lambda _: None)
    found = rows.explain("users", "1")
    assert (found["cache"]["kind"], outcome(found)) == ("negative", ("consistent", 0))
    begin_fill(rows.wb, rows.name("users:2"), "token")
    assert rows.explain("users", "2")["cache"]["standing"] == "filling"
    rows.client.set(rows.name("users:3"), "SETEX")
    assert rows.explain("users", "3")["cache"]["standing"] == "foreign"
    rows.wb.increment("users", 4, {"name": 1})
    assert rows.explain("users", "4")["cache"]["kind"] == "marker"


# Which row is meant.


def test_a_composite_key(rows: Rows) -> None:
    line = uuid.uuid4()
    rows.wb.put("lines", {"line": line, "order": 7}, {"n": 1})
    raw(rows, {"table": "lines", "id": {"order": "07", "line": str(line).upper()}, "data": {"n": 2}})
    raw(rows, {"table": "lines", "id": {"order": 8, "line": str(line)}, "data": {"n": 2}})
    found = rows.explain("lines", json.dumps({"order": 7, "line": str(line).upper()}))
    assert len(found["pending"]["writes"]) == 2
    assert found["key"] == {"line": str(line), "order": "7"}
    rows.flush()
    found = rows.explain("lines", json.dumps({"order": 7, "line": str(line)}))
    assert found["cache_key"] == rows.name(f"lines:{line}:7")
    assert found["difference"]["columns"] == ["n"]
    result = rows.run("explain", "lines", "7")
    assert (result.exit_code, "its key has the columns line, order" in result.output) == (2, True)


@pytest.mark.parametrize(
    "id", ["42", "042", "1e3", "Ünïcode 😀 :%*?[x]\\", '{"a": 1}', "null", "-1", "--json"]
)
def test_a_text_id_is_taken_as_it_is(rows: Rows, id: str) -> None:
    rows.wb.put("pages", id, {"views": 1})
    rows.wb.put("pages", f"{id} ", {"views": 1})
    rows.wb.put("users", 42, {"name": "x"})
    found = rows.explain("--", "pages", id)
    assert len(found["pending"]["writes"]) == 1
    assert found["cache"]["standing"] == "pending"
    rows.flush()
    assert rows.explain("--", "pages", id)["verdict"] == "All writes are in Postgres, and the cache agrees."


def test_spellings_of_one_key_and_keys_that_only_postgres_can_compare(rows: Rows) -> None:
    rows.pg.execute("CREATE TABLE days (day date PRIMARY KEY, n int)")
    rows.pg.execute("CREATE TABLE sums (amount numeric PRIMARY KEY, n int)")
    for day in ("2024-03-01", "March 1, 2024", "20240301", "2024-03-02", "no day"):
        raw(rows, {"table": "days", "id": day, "data": {"n": 1}})
    for amount in ("1.0", "1.00", "1", "1.01"):
        raw(rows, {"table": "sums", "id": amount, "data": {"n": 1}})
    for id in ("7", "007", " 7", "+7", "8", "70"):
        raw(rows, {"table": "users", "id": id, "data": {"name": "x"}})
    assert len(rows.explain("days", "2024-03-01")["pending"]["writes"]) == 3
    assert len(rows.explain("sums", "1.000")["pending"]["writes"]) == 3
    assert len(rows.explain("users", "7")["pending"]["writes"]) == 4
    assert len(rows.explain("days", "no day")["pending"]["writes"]) == 1
    rows.flush()
    assert rows.explain("days", "no day")["dead_letters"][0]["sqlstate"] == "22007"
    assert rows.explain("sums", "1.000")["exists"] is True


def test_another_prefix_is_pointed_out_and_a_key_can_be_given(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    text = rows.run("explain", "users", "1").output
    assert f"its cache key is another: {rows.name('users:1')}" in text
    found = rows.explain("users", "1", "--key", rows.name("users:1"))
    assert found["cache"]["standing"] == "pending"
    assert rows.explain("users", "1", "--version", "3")["cache_key"] == f"{rows.prefix}v3:users:1"


def test_that_an_earlier_write_was_rejected_is_told_while_the_entry_is_pending(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    asked = "explain", "users", "1", "--prefix", rows.prefix
    assert "was rejected" not in rows.run(*asked).output
    rows.client.hset(rows.name("users:1"), "@dirty", "1")
    assert "an earlier write was rejected" in rows.run(*asked).output
    rows.flush()
    assert "was rejected" not in rows.run(*asked).output


def test_a_table_that_postgres_does_not_have(rows: Rows) -> None:
    raw(rows, {"table": "nowhere", "id": 1, "data": {}})
    found = rows.explain("nowhere", "1")
    assert len(found["pending"]["writes"]) == 1
    rows.flush()
    found = rows.explain("nowhere", "1")
    assert outcome(found) == ("consistent", 0)
    assert "Postgres has no table nowhere" in found["verdict"]


# What else may be in the queue.


def test_unreadable_messages_are_counted_and_passed_over(rows: Rows) -> None:
    for item in (b"not json", b"\xff\xfe", b"[]", b'{"table":5,"id":1}', b"[" * 5000, b'{"id":1}', b""):
        raw(rows, item)
    rows.wb.put("users", 1, {"name": "Ada"})
    found = rows.explain("users", "1")
    assert (len(found["pending"]["writes"]), found["pending"]["unreadable"]) == (1, 7)
    assert found["pending"]["writes"][0]["ahead"] == 7


def test_the_search_is_bounded_and_says_so(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    rows.client.lpush(rows.queue, *(f'{{"table":"users","id":{i},"data":{{}}}}' for i in range(2, 3000)))
    found = rows.explain("users", "1", "--scan", "500")
    assert (found["pending"]["looked"], found["pending"]["is_whole"]) == (500, False)
    assert outcome(found) == ("pending", 0)
    assert "among the oldest 2,499 of 2,999" in found["verdict"]
    text = rows.run("explain", "users", "1", "--prefix", rows.prefix, "--scan", "500").output
    assert "only the newest 500 of 2,999" in text
    whole = rows.explain("users", "1", "--scan", "0")
    assert (len(whole["pending"]["writes"]), whole["pending"]["is_whole"]) == (1, True)
    assert rows.explain("users", "2", "--scan", "3000")["pending"]["writes"][0]["ahead"] == 1


@pytest.mark.parametrize("key", ["queue", "inflight", "tables", "applied", "clock"])
def test_keys_of_a_wrong_type_are_an_error_and_no_traceback(rows: Rows, key: str) -> None:
    name = getattr(rows.keys, key)
    rows.client.delete(name)
    rows.client.geoadd(name, (1, 1, "x"))
    result = rows.run("explain", "users", "1")
    assert result.exit_code == 2
    assert "WRONGTYPE" in result.output


def test_a_queue_key_with_nonsense_is_an_error(rows: Rows) -> None:
    rows.client.rpush(rows.keys.inflight, "nonsense")
    result = rows.run("explain", "users", "1")
    assert (result.exit_code, "holds what no worker has put there" in result.output) == (2, True)


def test_the_text_is_in_the_order_of_the_datas_way_and_obeys_no_terminal(rows: Rows) -> None:
    rows.wb.put("pages", "\x1b[31m", {"views": 1})
    result = rows.run("explain", "pages", "\x1b[31m", "--prefix", rows.prefix)
    assert "\x1b" not in result.output
    labels = [line.split()[0] for line in result.output.splitlines() if line[0] != " "]
    assert labels[:7] == ["row", "cache", "cache", "pending", "ledger", "dead", "postgres"]


# Servers that are down: what the other one knows is shown.


def test_without_postgres_the_queue_is_still_shown(rows: Rows) -> None:
    rows.wb.put("users", 1, {"name": "x"})
    rows.flush()  # a worker publishes what it knows of the tables
    rows.wb.put("users", 42, {"name": "Ada"})
    raw(rows, {"table": "public.users", "id": "0042", "data": {"name": "Ada"}})
    found = rows.explain("users", "42", postgres_url=DOWN_POSTGRES)
    assert outcome(found) == ("unknown", 2)
    assert len(found["pending"]["writes"]) == 2
    assert found["cache"]["standing"] == "pending"
    assert (found["exists"], found["ledger"], found["dead_letters"]) == (None, None, None)
    assert "2 writes wait in Redis" in found["verdict"]
    assert "hunter2" not in json.dumps(found)
    text = rows.run("explain", "users", "42", postgres_url=DOWN_POSTGRES)
    assert "hunter2" not in text.output
    assert text.exit_code == 2


def test_without_redis_the_row_and_its_dead_letters_are_still_shown(rows: Rows) -> None:
    raw(rows, {"table": "users", "id": 1, "data": {"nonsense": 1}})
    rows.flush()
    rows.pg.execute("INSERT INTO users VALUES (1, 'Ada')")
    found = rows.explain("users", "1", redis_url=DOWN_REDIS)
    assert outcome(found) == ("unknown", 2)
    assert (found["exists"], len(found["dead_letters"]), found["cache"]) == (True, 1, None)
    text = rows.run("explain", "users", "1", redis_url=DOWN_REDIS)
    assert "hunter2" not in text.output
    assert text.exit_code == 2
    both = rows.run("explain", "users", "1", redis_url=DOWN_REDIS, postgres_url=DOWN_POSTGRES)
    assert (both.exit_code, "Only a part of it could be seen" in both.output) == (2, True)


def test_a_database_without_the_ledger(rows: Rows) -> None:
    rows.pg.execute("DROP SCHEMA writebehind CASCADE")
    result = rows.run("explain", "users", "1")
    assert (result.exit_code, "writebehind init" in result.output) == (2, True)


# While everything moves.


def test_while_a_worker_runs_a_row_is_never_said_to_differ(rows: Rows) -> None:
    stop = threading.Event()

    def write() -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            with rows.wb.batch() as batch:
                batch.put("users", 1, {"name": f"name {i}"})
                for other in range(2, 6):
                    batch.put("users", other, {"name": f"name {i}"})
                batch.increment("pages", "/", {"views": 1})
                if i % 7 == 0:
                    batch.delete("users", 1)

    thread = threading.Thread(target=write)
    outcomes = set()
    with rows.process(batch_size=50):
        thread.start()
        try:
            for _ in range(12):
                for row in (("users", "1"), ("pages", "/")):
                    found = rows.explain(*row)
                    assert found["exit_code"] == 0, found
                    seqs = [write["seq"] for write in found["pending"]["writes"]]
                    assert len(set(seqs)) == len(seqs), "a write was counted twice"
                    outcomes.add(found["outcome"])
        finally:
            stop.set()
            thread.join()
    assert "pending" in outcomes


def test_no_item_is_missed_while_others_are_pushed_and_taken(rows: Rows, redis_client: redis.Redis) -> None:
    rows.wb.put("users", 1, {"name": "Ada"})
    rows.client.lpush(rows.queue, *(f'{{"table":"users","id":{i},"data":{{}}}}' for i in range(10, 500)))
    rows.wb.put("users", 1, {"name": "Bob"})
    rows.client.lpush(rows.queue, *(f'{{"table":"users","id":{i},"data":{{}}}}' for i in range(10, 500)))
    matcher = RowMatcher(lambda name: name == "users", [("id", lambda t: canonical("int", t))], {"id": "1"})
    batches = itertools.count(1)

    def disturb(done: int, total: int) -> None:
        """Between two looks: 30 more writes, and a batch of 40 is frozen."""
        redis_client.lpush(rows.queue, *['{"table":"users","id":9,"data":{}}'] * 30)
        batch = next(batches)
        for item in redis_client.rpop(rows.queue, 40) or []:
            redis_client.rpush(rows.keys.processing(batch), item)
        redis_client.rpush(rows.keys.inflight, batch)

    found = search(rows.client, rows.keys, matcher, None, disturb)
    assert [write.op for write in found.writes] == ["put", "put"]
    assert found.writes[0].batch == 1
    assert (found.moved, found.is_whole) == (True, True)


def test_a_message_with_an_old_seq_hides_no_write(rows: Rows) -> None:
    """Anybody may push what looks as if it were ours."""
    for i in range(1, 301):
        rows.wb.put("users", i, {"name": "x"})
    forged = {"seq": 1, "table": "users", "id": 301, "data": {"name": "x"}, "key": "zz"}
    raw(rows, json.dumps(forged, separators=(",", ":")).encode())
    for row in (5, 299):
        found = rows.explain("users", str(row))
        assert (len(found["pending"]["writes"]), found["pending"]["looked"]) == (1, 301)
    (write,) = rows.explain("users", "301")["pending"]["writes"]
    assert write["seq"] == 1


@pytest.mark.parametrize("pushed", [0, 5, 70, 400])
@pytest.mark.parametrize("taken", [0, 40, 400])
def test_what_moves_on_while_we_look_is_met_once(
    rows: Rows, redis_client: redis.Redis, pushed: int, taken: int
) -> None:
    """Among writes with a seq each raw message can be told from its likes."""
    forged = b'{"seq":1,"table":"users","id":7,"data":{},"key":"zz"}'
    for i in range(600):
        rows.wb.put("users", 1 if i % 100 == 0 else 2, {"name": f"{i}"})
        if i % 10 == 0:
            raw(rows, {"table": "users", "id": 1, "data": {}})
        if i % 50 == 0:
            raw(rows, forged)
    there = rows.client.llen(rows.queue)
    matcher = RowMatcher(lambda name: name == "users", [("id", lambda t: canonical("int", t))], {"id": "1"})
    batches = itertools.count(1)
    seen: list[int] = []

    def disturb(done: int, total: int) -> None:
        """After the first look and the third."""
        seen.append(done)
        if len(seen) not in (1, 3):
            return
        if taken:
            batch = next(batches)
            items = redis_client.rpop(rows.queue, taken) or []
            redis_client.rpush(rows.keys.processing(batch), *items)
            redis_client.rpush(rows.keys.inflight, batch)
        with rows.wb.batch() as more:
            for i in range(pushed):
                more.put("users", 3, {"name": f"{i}"})

    found = search(rows.client, rows.keys, matcher, None, disturb)
    raws = len([write for write in found.writes if write.seq is None])
    # Those that are frozen after we have looked at them are met once more.
    assert raws == 60 if taken < 400 else 60 <= raws < 120
    assert len(found.writes) - raws == 6
    assert found.is_whole
    assert found.looked <= there


# Two queues in one Redis.


def test_a_write_that_another_queue_has_is_pending(rows: Rows, redis_url: str) -> None:
    other = f"{rows.queue}:other"
    with WriteBehind.from_url(redis_url, queue=other, prefix=rows.prefix) as wb:
        wb.put("pages", "home", {"views": 1})
        for applied_beyond in (False, True):
            if applied_beyond:
                rows.wb.put("users", 1, {"name": "x"})
                rows.flush()
            found = rows.explain("pages", "home")
            assert found["cache"]["standing"] == "pending"
            assert (outcome(found), found["difference"]) == (("pending", 0), None)
            assert "another queue of this Redis has it" in found["verdict"]
            text = rows.run("explain", "pages", "home", "--prefix", rows.prefix).output
            assert "committed" not in text
        assert len(rows.explain("pages", "home", queue=other)["pending"]["writes"]) == 1


# Pure parts.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.integers(), st.booleans()), min_size=2))
def test_an_object_names_each_column(key: dict[str, Any]) -> None:
    read = read_id(json.dumps(key), list(key), "t")
    assert read == {n: v if isinstance(v, str) else json.dumps(v) for n, v in key.items()}


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_whatever_is_no_object_is_the_text_of_a_scalar(text: str) -> None:
    assert read_id(text, ["id"], "t") == {"id": text}
