"""Spans of both clients' calls, and of the worker's flushes, with links from these to those."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from tests.support.clients import EitherClient, clients
from tests.support.workers import RunningWorker, WorkerProcess

from writebehind import AsyncWriteBehind, InvalidWrite, QueueFull, SessionStore, WriteBehind, WriteRejected
from writebehind.core import Core
from writebehind.message import make_write, with_trace
from writebehind.opentelemetry import TracedCore, get_tracer
from writebehind_worker.cli import cli
from writebehind_worker.errors import FatalError
from writebehind_worker.received import receive
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.tracing import MOST_LINKS, traces
from writebehind_worker.tracing_setup import prepare_tracing

__all__ = ["clients"]  # a fixture

Connect = Callable[..., Any]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

_exporter = InMemorySpanExporter()


class Spans:
    """What has been recorded in this test."""

    def named(self, start: str) -> list[ReadableSpan]:
        return [span for span in _exporter.get_finished_spans() if span.name.startswith(start)]

    def one(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.named(name) if span.name == name]
        return span

    def flushes(self, count: int) -> list[ReadableSpan]:
        """So many of the worker's, once they are there."""
        wait_until(lambda: len(self.named("flush ")) >= count)
        return self.named("flush ")

    def clear(self) -> None:
        _exporter.clear()


@pytest.fixture
def spans() -> Spans:
    """Of the global provider, which is set once a process and is the worker's."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(_exporter))
        trace.set_tracer_provider(provider)
    _exporter.clear()
    return Spans()


def identity(context: Any) -> tuple[int, int]:
    assert context is not None
    return context.trace_id, context.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [identity(link.context) for link in span.links]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def items(client: redis.Redis, queue: str) -> list[bytes]:
    """The messages that wait, oldest first."""
    found: list[Any] = client.lrange(queue, 0, -1)
    return found[::-1]


def unstamped(item: bytes) -> bytes:
    """A message without its `seq`."""
    return b"{" + item[item.index(b'"table"') :]


# The clients.


def test_each_call_is_a_span(clients: EitherClient, spans: Spans, queue: str) -> None:
    call = clients.connect(tracer=get_tracer())
    call("put", "t", 1, {"name": "secret"})
    call("patch", "t", 1, {"name": "secret"})
    call("increment", "n", 1, {"n": 1})
    call("delete", "t", 1)
    call("get", "t", 1)
    call("get_many", "t", [1, 2])
    call("invalidate", "t", 7)
    clients.batch(lambda batch: (batch.put("t", 1, {}), batch.put("t", 2, {})))
    clients.batch(lambda batch: (batch.put("t", 1, {}), batch.delete("n", 2)))
    clients.batch(lambda batch: batch.put("t", 1, {}))
    found = _exporter.get_finished_spans()
    assert [(span.name, attributes(span)["db.operation.name"]) for span in found] == [
        ("put t", "put"),
        ("patch t", "patch"),
        ("increment n", "increment"),
        ("delete t", "delete"),
        ("get t", "get"),
        ("get_many t", "get_many"),
        ("invalidate t", "invalidate"),
        ("BATCH put t", "BATCH put"),
        ("BATCH", "BATCH"),
        ("put t", "put"),
    ]
    assert {span.kind for span in found} == {SpanKind.CLIENT}
    assert {span.status.status_code for span in found} == {StatusCode.UNSET}
    assert attributes(found[0]) == {
        "db.system.name": "redis",
        "db.operation.name": "put",
        "db.collection.name": "t",
        "writebehind.queue": queue,
    }
    sizes = [attributes(span).get("db.operation.batch.size") for span in found]
    assert sizes == [None] * 5 + [2, None, 2, 2, None]
    assert "secret" not in "".join(span.to_json() for span in found)
    assert {span.instrumentation_scope.name for span in found if span.instrumentation_scope} == {
        "writebehind"
    }
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_each_call_of_a_session_store_is_a_span(
    connect: Callable[..., WriteBehind], spans: Spans, redis_client: redis.Redis, queue: str
) -> None:
    wb = connect(tracer=get_tracer())
    store = SessionStore(wb, load=lambda _: None, load_ids_of_user=lambda _: [])
    token = store.create(7)
    store.get(token)
    store.set(token, "theme", "dark")
    token = store.rotate(token)
    store.touch(token)
    store.revoke(token)
    store.revoke_all(7)
    names = [span.name for span in _exporter.get_finished_spans() if not span.name.startswith("load ")]
    calls = ("create", "get", "update", "rotate", "touch", "revoke", "revoke_all")
    assert names == [f"session_{name} sessions" for name in calls]
    assert all(b'"trace":' in item for item in items(redis_client, queue))


def test_each_call_of_a_lock_and_a_rate_limit_is_a_span(
    connect: Callable[..., WriteBehind], spans: Spans
) -> None:
    wb = connect(tracer=get_tracer())
    with wb.lock("a", timeout=20) as lock:
        lock.extend(20)
    limiter = wb.rate_limit("r", 5, per=60)
    limiter.acquire()
    limiter.wait(0)
    names = [span.name for span in _exporter.get_finished_spans()]
    assert names == ["lock_acquire", "lock_extend", "lock_release", "rate_limit_acquire", "rate_limit_wait"]


def test_what_a_call_raises_is_recorded(clients: EitherClient, spans: Spans) -> None:
    call = clients.connect(tracer=get_tracer(), max_queue_length=1)
    call("put", "t", 1, {})
    with pytest.raises(QueueFull):
        call("put", "t", 2, {})
    for wrong in (None, 3):
        with pytest.raises(InvalidWrite):
            call("delete", wrong, 2)
    full, wrong_1, wrong_2 = _exporter.get_finished_spans()[1:]
    assert attributes(full)["error.type"] == "QueueFull"
    assert full.status.status_code is StatusCode.ERROR
    assert [event.name for event in full.events] == ["exception"]
    for span in (wrong_1, wrong_2):
        assert (span.name, attributes(span)["error.type"]) == ("delete", "InvalidWrite")
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("name", ["get", "get_many"])
def test_a_loader_is_a_span_within(clients: EitherClient, spans: Spans, name: str) -> None:
    tracer = get_tracer()
    call = clients.connect(tracer=tracer)

    def query(asked: Any) -> Any:
        with tracer.start_as_current_span("SELECT"):
            return {"id": 1} if name == "get" else [{"id": 1}]

    async def async_query(asked: Any) -> Any:
        await asyncio.sleep(0.01)
        return query(asked)

    def fail(asked: Any) -> Any:
        raise LookupError("no database")

    load = query if clients.kind == "sync" else async_query
    with tracer.start_as_current_span("request"):
        call(name, "t", 1 if name == "get" else [1], load)
        call(name, "t", 1 if name == "get" else [1], load)  # a hit
    with pytest.raises(LookupError):
        call(name, "t", 2 if name == "get" else [2], fail)
    request, select = spans.one("request"), spans.one("SELECT")
    first, second, failed = spans.named(f"{name} t")
    loads = spans.named("load t")
    assert len(loads) == 2
    assert identity(select.parent) == identity(loads[0].context)
    assert identity(loads[0].parent) == identity(first.context)
    assert identity(first.parent) == identity(second.parent) == identity(request.context)
    assert failed.parent is None
    assert identity(loads[1].parent) == identity(failed.context)
    assert loads[1].status.status_code is failed.status.status_code is StatusCode.ERROR
    assert attributes(failed)["error.type"] == "LookupError"


def test_a_cancelled_call_ends_its_span_and_gives_its_token_up(
    spans: Spans, redis_url: str, queue: str
) -> None:
    async def job() -> None:
        async with AsyncWriteBehind.from_url(
            redis_url, queue=queue, prefix=f"{queue}:", tracer=get_tracer()
        ) as wb:
            loading = asyncio.Event()

            async def hang(id: int) -> Any:
                loading.set()
                await asyncio.sleep(60)

            task = asyncio.create_task(wb.get("t", 1, hang))
            await loading.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert await asyncio.wait_for(wb.get("t", 1, lambda id: {"id": id}), 2) == {"id": 1}
            # Many at once: each has its own span, and its loads are within that.
            await asyncio.gather(*(wb.get("t", 10 + i, lambda id: {"id": id}) for i in range(20)))

    asyncio.run(job())
    cancelled, *others = spans.named("get t")
    assert attributes(cancelled)["error.type"] == "CancelledError"
    assert len(others) == 21
    parents = {identity(span.parent) for span in spans.named("load t")}
    assert parents == {identity(span.context) for span in (cancelled, *others)}


def test_a_message_is_as_ever_where_nothing_is_traced(
    clients: EitherClient, spans: Spans, redis_client: redis.Redis, queue: str
) -> None:
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    wanted: list[dict[str, Any]] = [{}, {"tracer": get_tracer(off)}, {"tracer": get_tracer()}]
    for options in wanted:
        call = clients.connect(ttl_jitter=0, **options)
        call("put", "t", 1, {"name": "Ada"})
    without, unsampled, traced = map(unstamped, items(redis_client, queue))
    assert without == make_write("put", "t", 1, {"name": "Ada"}).message(f"{queue}:t:1", 3600)
    assert unsampled == without
    context = spans.one("put t").context
    assert context is not None
    text = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    assert traced == without[:-1] + f',"v":2,"trace":"{text}"}}'.encode()
    assert traced == with_trace(without, text)


def test_tracing_does_not_make_a_write_too_large(clients: EitherClient, spans: Spans, queue: str) -> None:
    size = len(make_write("put", "t", 1, {"name": "Ada"}).message(f"{queue}:t:1", 3600))
    call = clients.connect(ttl_jitter=0, tracer=get_tracer(), max_message_bytes=size)
    call("put", "t", 1, {"name": "Ada"})
    with pytest.raises(InvalidWrite):
        call("put", "t", 1, {"name": "Ada!"})


def test_every_call_of_the_core_is_traced() -> None:
    calls = {name for name, member in vars(Core).items() if callable(member) and not name.startswith("_")}
    parts = {"wanted_row", "wanted_rows", "by_shards_of_now", "parts", "shard", "shards"}
    parts |= {"admit", "all_shards", "at_home", "shards_have_changed"}
    assert calls - {"close", "for_sessions", "wanted"} - parts <= set(vars(TracedCore))


def test_what_is_no_tracer_is_refused(redis_url: str) -> None:
    for wrong in (True, "x", trace):
        with pytest.raises(ValueError, match="tracer"):
            WriteBehind.from_url(redis_url, tracer=wrong)


def test_nothing_is_imported_that_is_not_used() -> None:
    code = (
        "import sys, writebehind, writebehind_worker.service\n"
        "wb = writebehind.WriteBehind.from_url('redis://localhost', observer=writebehind.Observer())\n"
        "ours = {'prometheus', 'opentelemetry', 'tracing', 'tracing_setup'}\n"
        "loaded = {m.split('.')[1] for m in sys.modules if m.startswith('writebehind') and '.' in m}\n"
        "assert not loaded & ours, loaded & ours\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# The worker.


def test_a_flush_is_linked_to_its_writes(
    clients: EitherClient,
    spans: Spans,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    queue: str,
) -> None:
    call = clients.connect(tracer=get_tracer())
    for id in (1, 2, 1):
        call("put", "users", id, {"name": "Ada"})
    clients.batch(lambda batch: [batch.put("users", id, {"name": "B"}) for id in range(10, 20)])
    writers = [identity(span.context) for span in (*spans.named("put"), *spans.named("BATCH"))]
    assert len(writers) == 4
    with RunningWorker(**options, tracing=True):
        (flush,) = spans.flushes(1)
    assert links(flush) == writers
    assert flush.name == f"flush {queue}"
    assert flush.parent is None
    found = attributes(flush)
    (batch,) = found.pop("writebehind.batches")
    assert batch > 0
    assert found == {
        "writebehind.queue": queue,
        "writebehind.writes": 13,
        "writebehind.rows": 12,
        "writebehind.dead_letters": 0,
        "writebehind.links.left_out": 0,
    }
    assert flush.start_time is not None
    assert flush.end_time is not None
    assert flush.end_time > flush.start_time
    assert "at_once=True" in capsys.readouterr().out  # the fast path takes traced messages


def test_without_the_option_nothing_is_traced(
    connect: Connect, spans: Spans, users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    wb = connect(tracer=get_tracer())
    with RunningWorker(**options):
        wb.put("users", 1, {"name": "Ada"}).wait(10)
    assert spans.named("flush") == []


def test_what_is_refused_at_once_is_flushed_by_itself_and_still_linked(
    connect: Connect, spans: Spans, users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    users.execute("ALTER TABLE users ADD CHECK (name <> 'bad')")
    wb = connect(tracer=get_tracer())
    wb.put("users", 1, {"name": "Ada"})
    rejected = wb.put("users", 2, {"name": "bad"})
    with RunningWorker(**options, tracing=True):
        with pytest.raises(WriteRejected):
            rejected.wait(10)
        (flush,) = spans.flushes(1)
    found = attributes(flush)
    assert (found["writebehind.dead_letters"], found["writebehind.rows"]) == (1, 1)
    assert links(flush) == [identity(span.context) for span in spans.named("put")]
    (body,) = users.execute("SELECT body FROM writebehind.dead_letters").fetchone() or (b"",)
    (trace_id, span_id) = links(flush)[1]
    kept = f',"v":2,"trace":"00-{trace_id:032x}-{span_id:016x}-01"}}'
    assert bytes(body).endswith(kept.encode())  # the letter keeps the message as it came


def test_a_retried_letter_is_linked_to_the_call_that_wrote_it(
    connect: Connect, spans: Spans, users: psycopg.Connection[Any], options: dict[str, Any]
) -> None:
    receipt = connect(tracer=get_tracer()).put("users", 1, {"email": "ada@example.com"})
    with RunningWorker(**options, tracing=True):
        with pytest.raises(WriteRejected):
            receipt.wait(10)
        spans.flushes(1)
        users.execute("ALTER TABLE users ADD COLUMN email text")
        urls = ["--redis-url", options["redis_url"], "--postgres-url", options["postgres_url"]]
        done = CliRunner().invoke(
            cli, ["dead", "retry", "--all", "--queue", options["queue"], *urls], input="y\n"
        )
        assert done.exit_code == 0, done.output
        wait_until(lambda: users.execute("SELECT email FROM users").fetchall() == [("ada@example.com",)])
        again = spans.flushes(2)[1]
    assert links(again) == [identity(spans.one("put users").context)]


ODD: list[Any] = [
    None, 5, True, "", "x", TRACE[:-1], TRACE + "0", TRACE.upper(), TRACE + "\n", " " + TRACE,
    "ff" + TRACE[2:],
    "00-" + "0" * 32 + TRACE[35:], TRACE[:36] + "0" * 16 + "-01", TRACE.replace("a", "é"), "\0", "\\u0000",
    [TRACE], {"trace": TRACE}, 1e300, 10**400, "x" * 100_000, "💥", [[[[]]]],
]  # fmt: skip


def test_an_odd_trace_neither_rejects_nor_breaks_anything(
    spans: Spans,
    users: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
) -> None:
    def item(id: int, **more: Any) -> bytes:
        return json.dumps({"table": "users", "id": id, "data": {"name": "x"}} | more).encode()

    sent = [item(id, v=2, trace=odd) for id, odd in enumerate(ODD)]
    sent += [item(100, trace=TRACE), item(101, v=1, trace=TRACE), item(102, v=2)]
    sent += [
        item(103, data={"name": f'"trace":"{TRACE}"'}),
        item(104, trace="y", v=2)[:-1] + b',"trace":"z"}',
    ]
    sent += [b'{"trace":"%b",' % TRACE.encode() + item(105)[1:]]
    redis_client.lpush(queue, *sent)
    with RunningWorker(**options, tracing=True):
        wait_until(lambda: users.execute("SELECT count(*) FROM users").fetchone() == (len(sent),))
        (flush,) = spans.flushes(1)
        assert len(flush.links) == 1  # of all these, one is a trace
        redis_client.lpush(queue, b'{"trace":', b'"trace"', b'{"trace":"\xff"}', item(1000))
        assert len(spans.flushes(2)[1].links) == 0
    assert users.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (3,)


def test_odd_traces_are_read_alike_one_by_one() -> None:
    for odd in ODD:
        body = json.dumps({"table": "t", "id": 1, "data": {}, "v": 2, "trace": odd}).encode()
        assert receive(0, body, 1).fault is None
        assert traces([body]) == ([], 0)
    assert receive(0, b'{"table":"t","id":1,"data":{},"tracing":1}', 1).fault is not None


def test_links_are_bounded_and_the_rest_counted(
    spans: Spans,
    users: psycopg.Connection[Any],
    redis_client: redis.Redis,
    queue: str,
    options: dict[str, Any],
) -> None:
    found = [f"00-{i + 1:032x}-{i + 1:016x}-01" for i in range(300)]
    sent = [with_trace(json.dumps({"table": "users", "id": i % 50}).encode(), t) for i, t in enumerate(found)]
    sent = [item.replace(b'"id"', b'"data":{"name":"x"},"id"') for item in sent]
    redis_client.lpush(queue, *sent, *sent)
    with RunningWorker(**options, tracing=True):
        (flush,) = spans.flushes(1)
    assert links(flush) == [(i + 1, i + 1) for i in range(MOST_LINKS)]
    assert attributes(flush)["writebehind.links.left_out"] == 2 * (300 - MOST_LINKS)  # writes


class _Failing(SpanProcessor):
    """Raises at each span of the worker's."""

    def __init__(self) -> None:
        self.is_on = True

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self.is_on and span.name.startswith("flush"):
            raise RuntimeError("of a processor")


@pytest.fixture
def failing(spans: Spans) -> Iterator[_Failing]:
    processor = _Failing()
    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(processor)
    yield processor
    processor.is_on = False  # none can be taken away


def test_a_span_that_cannot_be_made_holds_nothing_up(
    failing: _Failing,
    connect: Connect,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    wb = connect()
    with RunningWorker(**options, tracing=True):
        for id in range(3):
            wb.put("users", id, {"name": "x"}).wait(10)
    said = capsys.readouterr().out
    assert said.count("no span could be made") == 1
    assert said.count("event=owner") + said.count("] owner ") == 1


def test_the_process_sends_its_spans_where_the_variables_say(
    connect: Connect,
    users: psycopg.Connection[Any],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    spans: Spans,
    queue: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with WorkerProcess(**options, tracing=True) as worker:
        connect(tracer=get_tracer()).put("users", 1, {"name": "Ada"}).wait(15)
        worker.terminate()
        assert worker.wait() == 0
        log = worker.log
    assert f'"name": "flush {queue}"' in log
    assert '"service.name": "writebehind"' in log
    context = spans.one("put users").context
    assert context is not None
    assert f"0x{context.span_id:016x}" in log  # the link


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "nowhere"}, "nowhere"),
        ({}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "smoke"),
    ],
)
def test_what_cannot_be_sent_stops_the_start(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    from importlib.metadata import entry_points

    if entry_points(group="opentelemetry_traces_exporter", name=said):
        pytest.skip(f"{said} is installed")
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with WorkerProcess(**options, tracing=True) as worker:
        assert worker.wait() == 2
        assert said in worker.log
        assert "Traceback" not in worker.log


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(FatalError, match="SDK") as caught:
        prepare_tracing()
    assert "pip install opentelemetry-sdk" in str(caught.value.hint)
