"""Two hundred thousand messages that nobody should write, good ones among them, against one process."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
import pytest
import redis
from bench.cpu import peak_mib
from psycopg import errors as pg_errors
from tests.support.bad_messages import TABLES, TYPES, Sample, huge, samples, typed_table
from tests.support.part import WHOLE, sampled
from tests.support.workers import WorkerProcess

from writebehind_worker.testing.wait import wait_until

OF_PYTHON = re.compile(r"Traceback|<class|psycopg|msgspec|\bb'|\['|\{'")


@pytest.fixture
def options(redis_url: str, postgres_url: str, queue: str) -> dict[str, str]:
    return {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}


@pytest.fixture
def types(pg: psycopg.Connection[Any]) -> list[str]:
    """All types that this server has; their table, and the others."""
    pg.execute("SET TimeZone = 'UTC'")
    pg.execute(TABLES.encode())
    known = []
    for name in TYPES:
        try:
            pg.execute(f"SELECT FROM json_to_record('{{\"v\":null}}') AS r(v {name})".encode())
            if name == "xml":
                pg.execute("SELECT '<a/>'::xml")
        except pg_errors.FeatureNotSupported:  # built without it
            continue
        known.append(name)
    pg.execute(typed_table(known).encode())
    return known


def push(client: redis.Redis, queue: str, sent: Sequence[Sample], at_once: int = 1000) -> None:
    for start in range(0, len(sent), at_once):
        client.lpush(queue, *(sample.body for sample in sent[start : start + at_once]))


def wait_until_drained(client: redis.Redis, queue: str, worker: WorkerProcess, timeout: float) -> None:
    def drained() -> bool:
        assert worker.is_alive(), worker.log
        return not client.llen(queue) and not client.exists(f"{{{queue}}}:inflight")

    wait_until(drained, timeout, interval=0.05, message="the queue was not drained")


def check_rows(pg: psycopg.Connection[Any], sent: Iterable[Sample]) -> None:
    """The good ones have landed as they were meant, and nothing else has."""
    expected = {(table, id): (column, text) for table, id, column, text in (s.row for s in sent if s.row)}
    keys: set[tuple[str, int]] = set()
    for table, key in (("things", "id"), ("pairs", "tenant"), ("strict", "id"), ("typed", "id")):
        keys |= {(table, id) for (id,) in pg.execute(f"SELECT {key} FROM {table} WHERE {key} <> 0".encode())}
        for column in {c for (t, _), (c, _) in expected.items() if t == table}:
            query = f"SELECT {key}, {column}::text FROM {table} WHERE {column} IS NOT NULL AND {key} <> 0"
            for id, text in pg.execute(query.encode()):
                wanted, value = expected[table, id]
                assert wanted != column or text == value, (table, column, id)
    assert keys == expected.keys()


def check_dead_letters(pg: psycopg.Connection[Any], sent: Iterable[Sample]) -> set[str]:
    """The bad ones are kept, each once, as they were, with a reason that a person understands."""
    bad = {s.body: s for s in sent if s.row is None}
    left = Counter(s.body for s in sent if s.row is None)
    for body, state, reason in pg.execute("SELECT body, sqlstate, reason FROM writebehind.dead_letters"):
        left[body] -= 1
        sample = bad[body]
        assert re.fullmatch("[0-9A-Z]{5}", state)
        assert re.search(sample.says, reason), (sample.kind, reason, body[:200])
        assert 15 < len(reason) <= 1100, (sample.kind, len(reason))
        assert reason.isprintable(), (sample.kind, reason)
        assert not OF_PYTHON.search(reason), (sample.kind, reason)
    assert not any(left.values())
    return {sample.kind for sample in bad.values()}


@sampled
@pytest.mark.timeout(300)
def test_every_good_one_lands_and_every_bad_one_is_kept_with_a_reason(
    options: dict[str, str], redis_client: redis.Redis, pg: psycopg.Connection[Any], types: list[str]
) -> None:
    part = 1 if WHOLE else 8
    by_postgres = 1_000 if WHOLE else 500  # fewer would not have every type
    bad, good_ones = 186_000 // part, 12_500 // part
    sent = list(samples(seed=20, bad=bad, by_postgres=by_postgres, good_ones=good_ones, types=types))
    assert len(sent) > 200_000 // part
    with WorkerProcess(**options) as worker:
        push(redis_client, options["queue"], sent)
        wait_until_drained(redis_client, options["queue"], worker, timeout=240)
        peak, log = peak_mib(worker.pid), worker.log
    check_rows(pg, sent)
    kinds = check_dead_letters(pg, sent)
    assert kinds >= {f"wrong {name}" for name in types}
    # A batch has 8 MiB at most, and four are in flight, each in a few forms; the interpreter has 50 MiB.
    assert peak < 250
    assert "Traceback" not in log
    assert len(re.findall('"event": "owner"', log)) == 1, log


@pytest.mark.timeout(300)
def test_values_of_fifty_megabytes_land_or_are_kept_one_by_one(
    options: dict[str, str], redis_client: redis.Redis, pg: psycopg.Connection[Any], types: list[str]
) -> None:
    sent = [*samples(seed=21, bad=100, by_postgres=0, good_ones=100, types=types), *huge(1000)]
    with WorkerProcess(**options, lease_ttl_s=10) as worker:
        push(redis_client, options["queue"], sent, at_once=1)
        wait_until_drained(redis_client, options["queue"], worker, timeout=240)
        peak, log = peak_mib(worker.pid), worker.log
    check_rows(pg, sent)
    check_dead_letters(pg, sent)
    # The lease is renewed beside the longest of messages.
    assert len(re.findall('"event": "owner"', log)) == 1, log
    # One at a time is on its way to Postgres, in some eight forms, and two wait for it.
    assert peak < 1500
    assert "Traceback" not in log
