"""Large values, compressed in cache and queue: nobody who reads or writes a row can tell."""

from __future__ import annotations

import json
import random
import string
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
import zstandard
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.clients import Make, clients_of
from tests.support.part import drawn, sampled
from tests.support.rows import Rows
from tests.support.workers import RunningWorker

from writebehind import (
    FlushTimeout,
    InvalidWrite,
    WriteBehind,
    WriteRejected,
    packing,
)
from writebehind import frame as frames
from writebehind.frame import MARKS, Compression
from writebehind.keys import QueueKeys
from writebehind_worker import flush, received, verify
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS
from writebehind_worker.errors import FatalError, NewerVersion
from writebehind_worker.received import declared_size
from writebehind_worker.testing.wait import wait_until

KINDS: list[Compression] = ["zlib", "zstd"]
TEXT = "What is said a hundred times is worth packing. " * 100
OTHER = "Another text, which is as long as the one before. " * 100
JSON = {"tags": [f"tag {i}" for i in range(300)]}


@pytest.fixture(autouse=True)
def docs(pg: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    pg.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, meta jsonb, n bigint)")
    return pg


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, redis_url: str, queue: str) -> Iterator[Make]:
    """Makes clients of either kind, which are called alike."""
    with clients_of(request.param, redis_url, queue=queue, prefix=f"{queue}:", compress_above=100) as make:
        yield make


def unexpected(id: Any) -> Any:
    raise AssertionError(f"{id} was loaded")


def framed(client: redis.Redis, queue: str, id: int = 1) -> set[str]:
    """The columns of the cached row that hold frames."""
    found: Any = client.hgetall(f"{queue}:docs:{id}")
    return {name.decode() for name, value in found.items() if value[:1] in MARKS}


def newest(client: redis.Redis, queue: str) -> bytes:
    found: Any = client.lindex(queue, 0)
    return bytes(found)


def row(pg: psycopg.Connection[Any], id: int = 1) -> Any:
    return pg.execute("SELECT body, meta, n FROM docs WHERE id = %s", [id]).fetchone()


# What is stored.


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_value_is_compressed_in_cache_and_queue_and_read_as_it_was(
    client: Make, redis_client: redis.Redis, queue: str, docs: Any, options: dict[str, Any], kind: Compression
) -> None:
    wb = client(compression=kind)
    receipt = wb.put("docs", 1, {"body": TEXT, "meta": JSON, "n": 7})
    assert framed(redis_client, queue) == {"body", "meta"}
    (item,) = redis_client.lrange(queue, 0, -1)
    message = json.loads(item)
    assert (message["v"], message["data"], set(message["packed"])) == (2, {"n": 7}, {"body", "meta"})
    assert message["unpacked"] == len(json.dumps(TEXT)) + len(json.dumps(JSON, separators=(",", ":")))
    assert len(item) < message["unpacked"] / 2
    assert wb.get("docs", 1, unexpected) == {"body": TEXT, "meta": JSON, "n": 7}
    assert wb.get_many("docs", [1], unexpected) == [{"body": TEXT, "meta": JSON, "n": 7}]
    with RunningWorker(**options):
        wb.settle(receipt)
    assert row(docs) == (TEXT, JSON, 7)
    assert redis_client.ttl(f"{queue}:docs:1") > 0


def test_what_is_short_or_does_not_become_smaller_is_stored_as_ever(
    client: Make, redis_client: redis.Redis, queue: str
) -> None:
    drawn = "".join(random.Random(1).choices(string.ascii_letters + string.digits + "+/", k=900))
    data = {"body": drawn, "meta": "x" * 98, "n": 10**18}
    client(ttl_jitter=0).put("docs", 1, data)
    assert framed(redis_client, queue) == set()
    first, told = newest(redis_client, queue), redis_client.hgetall(f"{queue}:docs:1")
    assert b'"v":' not in first
    client(compress_above=None, ttl_jitter=0).put("docs", 1, data)
    assert first.partition(b",")[2] == newest(redis_client, queue).partition(b",")[2]
    assert {**told, b"@seq": b""} == {**redis_client.hgetall(f"{queue}:docs:1"), b"@seq": b""}
    client().put("docs", 2, {"meta": "x" * 99})
    assert framed(redis_client, queue, 2) == {"meta"}, "101 bytes of JSON are more than 100"


def test_a_client_reads_what_another_s_settings_have_made(client: Make) -> None:
    writers = [client(compress_above=above, compression=kind) for above in (None, 0, 100) for kind in KINDS]
    for writer in writers:
        writer.put("docs", 1, {"body": TEXT})
        for reader in writers:
            assert reader.get("docs", 1, unexpected) == {"body": TEXT}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_row_is_compressed_as_well(
    client: Make, redis_client: redis.Redis, queue: str, kind: Compression
) -> None:
    wb = client(compression=kind)
    assert wb.get("docs", 1, lambda _: {"body": TEXT, "n": 1}) == {"body": TEXT, "n": 1}
    wb.get_many("docs", [2, 3], lambda ids: [{"body": TEXT, "n": i} for i in ids])
    for id in (1, 2, 3):
        assert framed(redis_client, queue, id) == {"body"}
        assert wb.get("docs", id, unexpected) == {"body": TEXT, "n": id}
        assert redis_client.ttl(f"{queue}:docs:{id}") > 0


def test_columns_whose_names_begin_as_ours_do(client: Make, redis_client: redis.Redis, queue: str) -> None:
    wb, data = client(), {"@seq": TEXT, "@": OTHER, "x": "(", "(": "x"}
    wb.put("docs", 1, data)
    assert wb.get("docs", 1, unexpected) == data
    assert wb.get("docs", 2, lambda _: data) == data == wb.get("docs", 2, unexpected)
    assert framed(redis_client, queue) == {"@@seq", "@@"}


# Changes of a compressed row.


def test_patches_of_compressed_columns(
    client: Make, redis_client: redis.Redis, queue: str, docs: Any, options: dict[str, Any]
) -> None:
    wb = client()
    wb.put("docs", 1, {"body": TEXT, "meta": JSON, "n": 1})
    wb.patch("docs", 1, {"meta": "short", "n": 2})
    assert framed(redis_client, queue) == {"body"}
    wb.patch("docs", 1, {"body": OTHER})
    wb.increment("docs", 1, {"n": 5})
    last = wb.patch("docs", 1, {"meta": {"long": TEXT}})
    assert framed(redis_client, queue) == {"body", "meta"}
    assert wb.get("docs", 1, unexpected) == {"body": OTHER, "meta": {"long": TEXT}, "n": 7}
    with RunningWorker(**options):
        wb.settle(last)
    assert row(docs) == (OTHER, {"long": TEXT}, 7)


def test_an_increment_of_a_compressed_value_makes_a_marker_and_is_refused_by_postgres(
    client: Make, redis_client: redis.Redis, queue: str, options: dict[str, Any], docs: Any
) -> None:
    wb = client()
    wb.put("docs", 1, {"body": "1" * 1000})
    receipt = wb.increment("docs", 1, {"body": 10**200})
    assert redis_client.hget(f"{queue}:docs:1", "@is") == b"marker"
    assert b'"packed"' not in newest(redis_client, queue), "deltas are added, never packed"
    with RunningWorker(**options), pytest.raises(WriteRejected):
        wb.settle(receipt)
    assert row(docs)[0] == "1" * 1000


def test_many_in_a_batch_beside_plain_ones(
    client: Make, docs: Any, options: dict[str, Any], redis_client: redis.Redis, queue: str
) -> None:
    docs.execute("CREATE TABLE plain (id int PRIMARY KEY, n int)")
    wb = client()
    with RunningWorker(**options) as worker:
        receipts = []
        for i in range(60):
            receipts.append(wb.put("plain", i, {"n": i}))
            receipts.append(wb.put("docs", i, {"body": f"{i} {TEXT}" if i % 2 else str(i)}))
        wb.settle(receipts[-1])
        assert worker.metric("dead_lettered_total") == 0
    assert docs.execute("SELECT count(*), sum(n) FROM plain").fetchone() == (60, 1770)
    found = docs.execute("SELECT id, body FROM docs").fetchall()
    assert dict(found) == {i: f"{i} {TEXT}" if i % 2 else str(i) for i in range(60)}


# Any row.

_texts = st.builds(
    lambda t, n: t * n, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(0, 60)
)
_texts = _texts.map(lambda text: text.replace("\0", ""))
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | _texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=8,
)
_rows = st.fixed_dictionaries(
    {}, optional={"body": st.none() | _texts, "meta": _json, "n": st.integers(-(2**40), 2**40)}
)
_steps = st.lists(
    st.tuples(st.sampled_from(["put", "patch"]), _rows, st.sampled_from([0, 10, 300, None])),
    min_size=1,
    max_size=4,
)


@sampled
@pytest.mark.parametrize("kind", KINDS)
def test_any_row_by_any_steps_is_what_postgres_has(
    client: Make, rows: Rows, docs: Any, options: dict[str, Any], kind: Compression
) -> None:
    """With thresholds from 0 upwards, as the cache shows it at once and as Postgres has it at the end."""
    writers = {above: client(compress_above=above, compression=kind) for above in (0, 10, 300, None)}
    reader, ids = writers[None], iter(range(10**6))

    @settings(drawn(25), suppress_health_check=list(HealthCheck))
    @given(st.lists(_steps, min_size=1, max_size=6))
    def check(many: list[Any]) -> None:
        expected: dict[int, dict[str, Any]] = {}
        receipts = []
        for steps in many:
            id = next(ids)
            stored: dict[str, Any] = {"body": None, "meta": None, "n": None}
            shown: dict[str, Any] = {}
            for place, (op, data, above) in enumerate(steps):
                op = "put" if place == 0 else op
                if op == "patch" and not data:
                    continue
                receipts.append(getattr(writers[above], op)("docs", id, data))
                shown = data if op == "put" else shown | data
                stored |= data
            assert reader.get("docs", id, unexpected) == shown
            expected[id] = stored
        reader.settle(receipts[-1])
        for id, stored in expected.items():
            assert row(docs, id) == tuple(stored.values())

    with RunningWorker(**options):
        check()
        wait_until(lambda: not docs.execute("SELECT 1 FROM writebehind.dead_letters").fetchone())
        wait_until(lambda: int(rows.client.get(rows.keys.applied) or 0) > 0)
    found = rows.verify()
    assert (found["differ"], found["pending"], found["agree"] > 0) == (0, 0, True)


# Bounds.


def test_the_bound_of_a_message_is_of_what_is_sent(client: Make) -> None:
    wb = client(max_message_bytes=2000)
    wb.put("docs", 1, {"body": TEXT})
    with pytest.raises(InvalidWrite, match="max_message_bytes"):
        client(max_message_bytes=2000, compress_above=None).put("docs", 1, {"body": TEXT})


def test_no_value_is_written_that_a_reader_would_not_unpack(
    client: Make, redis_client: redis.Redis, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "MAX_UNPACKED_BYTES", 8000)
    wb = client()
    with pytest.raises(InvalidWrite, match="8000 bytes in all, not compressed"):
        wb.put("docs", 1, {"body": TEXT, "meta": TEXT})
    assert not redis_client.exists(queue, f"{queue}:docs:1")
    wb.put("docs", 1, {"body": TEXT})
    loaded = {"body": TEXT, "meta": TEXT}
    assert wb.get("docs", 2, lambda _: loaded) == loaded
    assert not redis_client.exists(f"{queue}:docs:2"), (
        "what is too large is not cached, and the token is gone"
    )


def test_the_worker_takes_few_at_once_of_what_unpacks_to_much(
    connect: Callable[..., WriteBehind], docs: Any, options: dict[str, Any]
) -> None:
    """A batch is bounded by what it unpacks to; in Redis all of it would fit into one."""
    wb = connect(compress_above=0)
    with wb.batch() as batch:
        for i in range(40):
            batch.put("docs", i, {"body": str(i % 10) * 50_000})
    stored = sum(map(len, wb.redis.lrange(wb.keys.queue, 0, -1)))
    assert stored < 20_000
    with RunningWorker(**options, batch_bytes=200_000) as worker:
        batch.wait(20)
        batches = worker.metrics.registry.get_sample_value("writebehind_batch_size_count")
        assert batches is None or batches >= 10
    (last_batch,) = docs.execute("SELECT recent_batches FROM writebehind.ledger").fetchone()
    assert (last_batch[-1] & 0xFFFFFFFF) >= 13, "at most three rows were in a batch"
    assert docs.execute("SELECT count(DISTINCT body), sum(length(body)) FROM docs").fetchone() == (
        10,
        2_000_000,
    )


def test_a_bomb_is_a_dead_letter_and_its_neighbours_go_on(
    redis_client: redis.Redis, queue: str, docs: Any, options: dict[str, Any]
) -> None:
    bomb = b64encode(zlib.compress(b"0" * (65 << 20))).decode()
    for said in (10**9, 65 << 20, 64 << 20, 10, None):
        message = {"table": "docs", "id": 1, "data": {}, "v": 2, "packed": {"body": bomb}}
        message |= {} if said is None else {"unpacked": said}
        redis_client.lpush(queue, json.dumps(message, separators=(",", ":")))
    redis_client.lpush(queue, '{"table":"docs","id":2,"data":{"body":"plain"}}')
    with RunningWorker(**options):
        wait_until(lambda: row(docs, 2) == ("plain", None, None), 20)
    reasons = [r for (r,) in docs.execute("SELECT reason FROM writebehind.dead_letters ORDER BY id")]
    assert len(reasons) == 5
    assert all("unpack" in reason for reason in reasons)
    assert row(docs, 1) is None


# Who cannot read it.


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on there is no zstd."""
    return lambda: monkeypatch.setattr(frames, "_zstd", lambda: None)


def test_a_reader_without_zstd_never_goes_back_behind_a_pending_write(
    client: Make, docs: Any, options: dict[str, Any], without_zstd: Callable[[], None], monkeypatch: Any
) -> None:
    wb = client(compression="zstd")
    docs.execute("INSERT INTO docs VALUES (1, 'old')")
    receipt = wb.put("docs", 1, {"body": TEXT})
    without_zstd()

    def load(id: int) -> dict[str, Any]:
        return {"body": row(docs, id)[0]}

    with pytest.raises(FlushTimeout):
        wb.get("docs", 1, load, timeout=0.05)
    with pytest.raises(FlushTimeout):
        wb.get_many("docs", [1], lambda ids: list(map(load, ids)), timeout=0.05)
    assert wb.get("docs", 1) is None
    monkeypatch.undo()
    with RunningWorker(**options):
        wb.settle(receipt)
    without_zstd()
    assert wb.get("docs", 1, load) == {"body": TEXT}
    assert wb.get_many("docs", [1], lambda ids: list(map(load, ids))) == [{"body": TEXT}]


@pytest.mark.parametrize(
    "damaged", [b"x", b"xylophone", b"(", b"(\xb5/\xfd", zlib.compress(b"1") + b"1", zlib.compress(b"1")[:-1]]
)
def test_a_damaged_frame_is_loaded_past(
    client: Make, redis_client: redis.Redis, queue: str, damaged: bytes
) -> None:
    wb = client()
    wb.get("docs", 1, lambda _: {"body": TEXT, "n": 1})
    redis_client.hset(f"{queue}:docs:1", "body", damaged)
    assert wb.get("docs", 1, lambda _: {"body": "from Postgres"}) == {"body": "from Postgres"}
    assert wb.get_many("docs", [1], lambda _: [{"body": "from Postgres"}]) == [{"body": "from Postgres"}]
    wb.put("docs", 1, {"body": OTHER})
    assert wb.get("docs", 1, unexpected) == {"body": OTHER}


def ended(worker: RunningWorker) -> BaseException:
    worker.start()
    wait_until(lambda: not worker._thread.is_alive(), 10)
    with pytest.raises(FatalError) as caught:
        worker.stop()
    return caught.value


def test_a_worker_without_zstd_stops_and_loses_nothing(
    connect: Callable[..., WriteBehind],
    docs: Any,
    options: dict[str, Any],
    without_zstd: Any,
    monkeypatch: Any,
) -> None:
    wb = connect(compress_above=100, compression="zstd")
    wb.put("docs", 1, {"body": TEXT})
    wb.put("docs", 2, {"body": "short"})
    without_zstd()
    error = ended(RunningWorker(**options))
    assert isinstance(error, FatalError)
    assert "compressed with zstd" in str(error)
    assert "pip install 'writebehind[zstd]'" in error.hint
    assert docs.execute("SELECT count(*) FROM docs").fetchone() == (0,)
    monkeypatch.undo()
    with RunningWorker(**options):
        wait_until(lambda: (row(docs), row(docs, 2)) == ((TEXT, None, None), ("short", None, None)))
    assert docs.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)


def test_a_worker_of_version_1_stops_and_the_next_one_goes_on(
    connect: Callable[..., WriteBehind],
    docs: Any,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wb = connect(compress_above=100)
    wb.put("docs", 1, {"body": TEXT})
    wb.put("docs", 2, {"body": "short"})
    for module in (received, flush):
        monkeypatch.setattr(module, "WIRE_VERSION", 1)
    error = ended(RunningWorker(**options))
    assert isinstance(error, NewerVersion)
    assert "wire format's version 2" in str(error)
    keys = QueueKeys(wb.keys.queue)
    (batch,) = wb.redis.lrange(keys.inflight, 0, -1)
    assert wb.redis.llen(keys.processing(int(batch))) == 2
    assert docs.execute("SELECT count(*) FROM docs").fetchone() == (0,)
    monkeypatch.undo()
    with RunningWorker(**options):
        wait_until(lambda: (row(docs), row(docs, 2)) == ((TEXT, None, None), ("short", None, None)))
    assert wb.get("docs", 1, unexpected) == {"body": TEXT}


# Commands.


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_a_changed_compressed_value_and_no_other(
    rows: Rows, connect: Callable[..., WriteBehind], kind: Compression
) -> None:
    wb = connect(compress_above=100, compression=kind)
    for i in range(3):
        wb.put("docs", i, {"body": TEXT, "meta": JSON})
    rows.flush()
    wb.get("docs", 5, lambda _: {"body": TEXT})
    rows.pg.execute("INSERT INTO docs VALUES (5, %s)", [TEXT])
    found = rows.verify()
    assert (found["agree"], found["differ"]) == (4, 0)
    rows.pg.execute("UPDATE docs SET body = 'x' WHERE id = 1")
    rows.client.hset(rows.name("docs:2"), "meta", zlib.compress(b"{")[:-1])
    found = rows.verify("--repair")
    assert {d["key"].removeprefix(rows.prefix): d["columns"] for d in found["differences"]} == {
        "docs:1": ["body"],
        "docs:2": ["meta"],
    }
    assert not rows.client.exists(rows.name("docs:1"), rows.name("docs:2"))


def test_verify_takes_large_rows_by_parts(
    rows: Rows, connect: Callable[..., WriteBehind], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_MOST_BYTES", 12_000)
    wb = connect(compress_above=100)
    for i in range(10):
        wb.put("docs", i, {"body": TEXT if i else TEXT * 4})
    rows.flush()
    found = rows.verify()
    assert (found["agree"], found["differ"]) == (10, 0)


def test_verify_without_zstd_says_that_it_cannot_tell(
    rows: Rows, connect: Callable[..., WriteBehind], without_zstd: Callable[[], None]
) -> None:
    connect(compress_above=100, compression="zstd").put("docs", 1, {"body": TEXT})
    rows.flush()
    without_zstd()
    result = rows.run("verify", "--all", "--prefix", rows.prefix)
    assert result.exit_code == 2
    assert "zstandard" in result.output
    assert rows.client.exists(rows.name("docs:1"))


def test_explain_shows_a_compressed_row_and_its_pending_write_unpacked(
    rows: Rows, connect: Callable[..., WriteBehind]
) -> None:
    wb = connect(compress_above=100)
    wb.put("docs", 1, {"body": TEXT, "n": 1})
    found = rows.explain("docs", "1", "--values")
    (write,) = found["pending"]["writes"]
    assert json.loads(write["body"])["data"] == {"body": TEXT, "n": 1}
    assert json.loads(found["cache"]["columns"]["body"]) == TEXT
    assert set(write["columns"]) == {"body", "n"}
    rows.flush()
    found = rows.explain("docs", "1")
    assert (found["difference"], found["cache"]["standing"]) == (None, "row")
    shown = rows.run("explain", "docs", "1", "--prefix", rows.prefix, "--values").output
    assert TEXT[:60] in shown
    assert "the cache agrees" in shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_letter_with_a_compressed_value_is_shown_and_retried(
    rows: Rows, connect: Callable[..., WriteBehind], kind: Compression
) -> None:
    wb = connect(compress_above=100, compression=kind)
    rows.pg.execute("ALTER TABLE docs ADD CONSTRAINT positive CHECK (n > 0)")
    wb.put("docs", 1, {"body": TEXT, "n": 0})
    rows.flush()
    (id, body) = rows.pg.execute("SELECT id, body FROM writebehind.dead_letters").fetchone() or (0, b"")
    assert declared_size(body) == len(TEXT) + 2
    shown = dead(rows, "show", str(id))
    assert TEXT[:60] in shown.output
    assert "shown unpacked" in shown.output
    found = json.loads(dead(rows, "show", str(id), "--json").output)
    assert found["body"] == bytes(body).decode()
    assert json.loads(found["body_unpacked"])["data"] == {"n": 0, "body": TEXT}
    rows.pg.execute("ALTER TABLE docs DROP CONSTRAINT positive")
    with rows.process():
        assert dead(rows, "retry", str(id)).exit_code == 0
    assert row(rows.pg) == (TEXT, None, 0)


def test_a_retry_shows_the_compressed_value_while_it_is_pending(
    rows: Rows, connect: Callable[..., WriteBehind], redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(compress_above=100)
    rows.pg.execute("ALTER TABLE docs ADD CONSTRAINT positive CHECK (n > 0)")
    wb.put("docs", 1, {"body": TEXT, "n": 0})
    rows.flush()
    (id,) = rows.pg.execute("SELECT id FROM writebehind.dead_letters").fetchone() or (0,)
    dead(rows, "retry", str(id), "--wait", "0.1")
    assert framed(redis_client, queue) == {"body"}
    assert wb.get("docs", 1, unexpected) == {"body": TEXT, "n": 0}
    corrected = json.dumps({"table": "docs", "id": 1, "data": {"body": OTHER, "n": 1}})
    rows.flush()
    dead(rows, "retry", str(id), "--body", corrected, "--wait", "0.1")
    assert wb.get("docs", 1, unexpected) == {"body": OTHER, "n": 1}
    rows.flush()
    assert row(rows.pg) == (OTHER, None, 1)


def dead(rows: Rows, command: str, *arguments: str) -> Any:
    names = ("postgres_url", "queue") if command == "show" else tuple(rows.options)
    urls = [part for name in names for part in (SETTINGS[name].flag, rows.options[name])]
    return CliRunner().invoke(cli, ["dead", command, *arguments, *urls], catch_exceptions=False)


def test_frames_of_the_package_and_levels_of_others_are_read(
    redis_client: redis.Redis, queue: str, docs: Any, options: dict[str, Any]
) -> None:
    """Any language can write them."""
    text = json.dumps(TEXT).encode()
    for id, frame in enumerate((zlib.compress(text, 1), zstandard.compress(text, 19))):
        packed = {"body": b64encode(frame).decode()}
        message = {"table": "docs", "id": id, "data": {}, "v": 2, "packed": packed, "unpacked": len(text)}
        redis_client.lpush(queue, json.dumps(message, separators=(",", ":")))
    with RunningWorker(**options):
        wait_until(lambda: [row(docs, id) for id in (0, 1)] == [(TEXT, None, None)] * 2)


def test_a_trace_goes_with_what_is_packed(
    connect: Callable[..., WriteBehind], docs: Any, options: Any
) -> None:
    wb, text = connect(compress_above=100), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    wb._core.traceparent = lambda: text
    wb.put("docs", 1, {"body": TEXT})
    body = newest(wb.redis, wb.keys.queue)
    assert (json.loads(body)["trace"], body.count(b'"v":2'), declared_size(body)) == (text, 1, len(TEXT) + 2)
    with RunningWorker(**options):
        wait_until(lambda: row(docs) == (TEXT, None, None))


def test_an_early_refresh_compresses_as_well(client: Make, redis_client: redis.Redis, queue: str) -> None:
    wb = client(ttl=10, refresh_ahead=8, ttl_jitter=0)
    wb.get("docs", 1, lambda _: {"body": TEXT})
    redis_client.expire(f"{queue}:docs:1", 5)
    assert wb.get("docs", 1, lambda _: {"body": OTHER}) == {"body": OTHER}
    assert framed(redis_client, queue) == {"body"}
    assert wb.get("docs", 1, unexpected) == {"body": OTHER}


def test_rows_of_this_process_are_unpacked(connect: Callable[..., WriteBehind], queue: str) -> None:
    wb = connect(compress_above=100, near_cache=10)
    wb.get("docs", 1, lambda _: {"body": TEXT})
    for _ in range(3):
        assert wb.get("docs", 1, unexpected) == {"body": TEXT}
    wb.put("docs", 1, {"body": OTHER})
    assert wb.get("docs", 1, unexpected) == {"body": OTHER}
