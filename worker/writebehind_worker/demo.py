"""`writebehind demo`: servers, producers and a worker of its own; the worker is killed half-way, another
goes on, and in the end everything is compared.

A signal only leaves a note, looked at between the steps: an exception could hit between the start of a
process and the note to end it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from types import FrameType

import msgspec
import psycopg
from rich.console import Console

from writebehind import WriteBehind

from .config import Config
from .demo_check import Verdict, check
from .demo_child import Child, DemoFailed, Flushed, read_flushed
from .demo_load import KEY_COLUMNS, PRODUCERS, SCHEMA, Expected, read_expected, shared_rows
from .demo_view import Sample, View
from .embedded import EmbeddedServers, temporary_data_dir
from .errors import WorkerError
from .ledger_schema import apply_schema
from .status import QueueStatus, read_status

INTERRUPTED = 130  # what a shell reports for Ctrl-C

_LEASE_TTL_S = 1.5
_WRITE_DELAY_S = 0.2
_LOOK_EVERY_S = 0.05
_STANDSTILL_S = 30.0
_REDIS_OPTIONS = {"appendfsync": "everysec"}  # the rule in production; a slow disk shall not slow the demo


class _Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP."""


class _Signals:
    """Notes that the user wants it to end."""

    def __init__(self, stack: ExitStack) -> None:
        self._asked = False
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            stack.callback(signal.signal, number, signal.signal(number, self._note))

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def check(self) -> None:
        if self._asked:
            raise _Interrupted


class _Demo:
    def __init__(self, writes: int, rows: int, view: View, signals: _Signals, stack: ExitStack) -> None:
        """``stack`` ends and removes whatever is started and made."""
        self._writes, self._rows = writes, rows
        self._view, self._signals, self._stack = view, signals, stack
        self._folder = temporary_data_dir()
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._servers = EmbeddedServers(self._folder, redis_options=_REDIS_OPTIONS)
        self._workers: list[Child] = []
        self._producers: list[Child] = []
        self._durable = self._dead_letters = 0
        self._produced_s = self._durable_s = 0.0

    def run(self) -> Verdict:
        started = time.monotonic()
        self._start_servers()
        self._view.say(f"Valkey and PostgreSQL answer after {time.monotonic() - started:.1f} s.")
        self._signals.check()
        self._start_worker()
        self._start_producers()
        self._serve()
        self._workers[-1].stop()
        verdict = self._check()
        self._signals.check()
        return verdict

    # Starting.

    def _start_servers(self) -> None:
        self._stack.callback(self._servers.stop)
        self._servers.start()
        self._config = Config(redis_url=self._servers.redis_url, postgres_url=self._servers.postgres_url)
        with psycopg.connect(self._config.postgres_url) as conn:
            apply_schema(conn)
            conn.execute(SCHEMA.encode())
            for (name, *values), columns in shared_rows(self._rows).items():
                table = str(name)
                row = dict(zip(KEY_COLUMNS[table], values, strict=True)) | columns
                query = f"INSERT INTO {table} SELECT * FROM json_populate_record(NULL::{table}, %s)"
                conn.execute(query.encode(), [msgspec.json.encode(row).decode()])

    def _start_worker(self) -> None:
        urls = ["--redis-url", self._config.redis_url, "--postgres-url", self._config.postgres_url]
        rest = ["--lease-ttl", str(_LEASE_TTL_S), "--write-delay", str(_WRITE_DELAY_S)]
        rest += ["--metrics-port", "0", "--log-format", "json"]
        name = f"worker-{len(self._workers) + 1}"
        self._workers.append(self._start(name, "writebehind_worker", "run", *urls, *rest))

    def _start_producers(self) -> None:
        for number in range(PRODUCERS):
            writes = self._writes // PRODUCERS + (number < self._writes % PRODUCERS)
            numbers = (str(number), str(self._rows), str(writes))
            arguments = (self._config.redis_url, *numbers, str(self._result(number)))
            name = f"producer-{number + 1}"
            self._producers.append(self._start(name, "writebehind_worker.demo_load", *arguments))

    def _start(self, name: str, *arguments: str) -> Child:
        child = Child(name, self._folder, *arguments)
        self._stack.callback(child.kill)
        return child

    def _result(self, producer: int) -> Path:
        return self._folder / f"producer-{producer + 1}.json"

    # The load.

    def _serve(self) -> None:
        """Until everything is durable; the worker is killed once half of it is."""
        began = moved = time.monotonic()
        while True:
            producing = sum(child.is_running(may_be_over=True) for child in self._producers)
            self._workers[-1].is_running()
            durable, queue = self._durable, self._look(began)
            moved = time.monotonic() if self._durable > durable else moved
            if time.monotonic() - moved > _STANDSTILL_S:
                raise DemoFailed(f"nothing became durable for {_STANDSTILL_S:.0f} s", self._workers[-1].log)
            if producing:
                self._produced_s = time.monotonic() - began
            is_over = not producing and not queue.length and not queue.frozen
            frozen = sum(batch.items for batch in queue.frozen)
            if len(self._workers) == 1:
                if is_over or 2 * (self._durable + frozen) >= self._writes:
                    self._kill_worker(is_over)
            elif is_over and self._is_owner(self._workers[1], queue):
                self._durable_s = time.monotonic() - began
                return
            time.sleep(_LOOK_EVERY_S)
            self._signals.check()

    def _look(self, began: float) -> QueueStatus:
        written = sum(int(child.printed or 0) for child in self._producers)
        queue = self._queue()
        frozen = sum(batch.items for batch in queue.frozen)
        # Never too high: what was accepted after `written` was read counts as pending already.
        self._durable = max(self._durable, written - queue.length - frozen)
        self._view.show(
            Sample(
                elapsed_s=time.monotonic() - began,
                total=self._writes,
                written=written,
                durable=self._durable,
                queue=queue.length,
                frozen=frozen,
                oldest_age_s=queue.oldest_age_s or 0,
                coalescing=self._flushed().coalescing,
            )
        )
        return queue

    def _queue(self) -> QueueStatus:
        status = read_status(self._config)
        if status.redis is None or status.dead_letters is None:
            raise DemoFailed(status.redis_error or status.postgres_error or "a server is down")
        self._dead_letters = sum(count.count for count in status.dead_letters)
        return status.redis

    def _is_owner(self, worker: Child, queue: QueueStatus) -> bool:
        return (queue.owner or "").endswith(f":{worker.process.pid}")

    def _kill_worker(self, is_over: bool) -> None:
        """Only with batches in its hands, as long as any are to come: it is stopped first, to look."""
        worker = self._workers[0]
        worker.process.send_signal(signal.SIGSTOP)
        if not self._queue().frozen and not is_over:
            worker.process.send_signal(signal.SIGCONT)
            return
        worker.kill()
        batches = self._queue().frozen
        frozen = sum(batch.items for batch in batches)
        self._view.say(
            f"Worker killed (SIGKILL) with {frozen:,} writes frozen in {len(batches)} of its batches; "
            f"about {self._durable:,} of {self._writes:,} were durable. Another one starts."
        )
        self._start_worker()

    def _flushed(self) -> Flushed:
        return read_flushed([worker.log for worker in self._workers])

    # The end.

    def _check(self) -> Verdict:
        parts = [read_expected(self._result(number)) for number in range(PRODUCERS)]
        self._say_figures(parts)
        with (
            WriteBehind.from_url(self._config.redis_url, parse_float=Decimal) as wb,
            psycopg.connect(self._config.postgres_url) as conn,
        ):
            return check(conn, wb, parts, self._rows, self._dead_letters)

    def _say_figures(self, parts: list[Expected]) -> None:
        operations = sum((Counter(part.operations) for part in parts), Counter[str]())
        flushed = self._flushed()
        self._view.say(
            f"{self._writes:,} writes ("
            + ", ".join(f"{count:,} {op}" for op, count in sorted(operations.items()))
            + f") by {PRODUCERS} producers in {self._produced_s:.1f} s: "
            f"{self._writes / self._produced_s:,.0f}/s; all durable after {self._durable_s:.1f} s."
        )
        self._view.say(
            f"The workers logged {flushed.batches} batches: {flushed.writes:,} writes became "
            f"{flushed.rows:,} rows written, in {flushed.seconds:.1f} s of transactions "
            f"({flushed.writes / (flushed.seconds or 1):,.0f} writes/s)."
        )


def run_demo(writes: int, rows: int) -> int:
    """Prints what happens and the outcome; returns 0 only if nothing was lost, repeated or stale."""
    _forget_settings()
    console = Console(highlight=False)
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            signals = _Signals(stack)
            view = stack.enter_context(View(console))
            verdict = _Demo(writes, rows, view, signals, stack).run()
    except _Interrupted:
        console.print("demo: interrupted; everything is stopped")
        return INTERRUPTED
    except WorkerError as error:
        console.print(f"demo: failed: {error}", markup=False)
        return 1
    console.print(verdict.table())
    console.print(f"Took {time.monotonic() - started:.1f} s, servers included.")
    console.print(verdict.summary(writes), style=None if verdict.is_good else "bold red", soft_wrap=True)
    return 0 if verdict.is_good else 1


def _forget_settings() -> None:
    """What the user has set for other servers must reach neither the worker nor libpq here."""
    for name in [name for name in os.environ if name.startswith(("PG", "WRITEBEHIND_"))]:
        del os.environ[name]
