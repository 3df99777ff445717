"""`writebehind top`: one frame in a pipe, and live on a real (pseudo) terminal."""

from __future__ import annotations

import fcntl
import http.server
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.support.status import Told
from tests.support.workers import ROOT, WorkerProcess, free_port

from writebehind_worker.cli import cli
from writebehind_worker.overview import Overview
from writebehind_worker.testing.wait import wait_until
from writebehind_worker.top_view import chosen, frame, sparkline
from writebehind_worker.watch import Answer, ask

Courses = st.lists(st.none() | st.floats(0, 1e9), max_size=700)


@pytest.fixture
def told() -> Told:
    return Told()


def top(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner(env=environment).invoke(cli, ["top", *arguments])
    return result.exit_code, result.output


def drawn(answers: list[Answer | None], urls: list[str], width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(frame(answers, urls, now_s=100.0))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def answer(overview: Overview, url: str = "http://one:1") -> Answer:
    return Answer(url, 100.0, overview)


@given(Courses, st.integers(1, 200))
def test_a_sparkline_fills_its_width(course: list[float | None], width: int) -> None:
    line = sparkline(course, width)
    assert len(line) == width
    assert set(line) <= set(" ▁▂▃▄▅▆▇█")
    values = [value for value in course[-600:] if value is not None]
    assert ("█" in line) == (max(values, default=0) > 0)
    assert (line.strip() == "") == (not values)


def test_a_sparkline_shows_the_peak_of_a_time_and_its_gaps() -> None:
    course: list[float | None] = [0.0] * 300 + [80.0] + [0.0] * 99 + [None] * 100 + [40.0] * 100
    assert sparkline(course, 6) == "▁▁▁█▁ ▅"[:3] + "█" + " " + "▅"
    assert sparkline([7.0] * 30, 4, "_.-#") == "  ##"


def seen_at_work(told: Told) -> tuple[Overview | None, int, str, float]:
    """What is answered and drawn of a worker that has just been busy; and how long ago that was, in s."""
    told.metrics.flushed("users", "applied", 12_000)
    for second in range(10):
        told.course.add(time.monotonic() - 10 + second, told.metrics.figures())
    told.metrics.flushed("users", "applied", 12_345)
    told.metrics.rows_written("users", 4115)
    told.metrics.flush([5000], 0.03)
    told.metrics.queue_is(1200, 3, 1, 0.25)
    told.metrics.dead_letters_are({("public.users", "23505"): 7, ("public.users", "none"): 1})
    began = time.monotonic()
    told.course.add(began, told.metrics.figures())
    with told.served() as url:
        found = ask(url).overview
        code, text = top("--once", "--url", url, COLUMNS="110")
    return found, code, text, time.monotonic() - began


def test_it_tells_what_status_json_tells() -> None:
    for _ in range(10):
        found, code, text, age_s = seen_at_work(Told())
        if age_s < 0.9:  # a busy machine may take longer: then it is no longer busy
            break
    assert found is not None
    assert code == 0
    assert found.findings[0].text in " ".join(text.split())
    for pattern in (
        r"waiting +1,203  writes",
        r"oldest waiting +0\.25 s",
        r"into Postgres +1,23\d  writes/s",
        r"coalescing +3\.00  writes/row",
        r"flush time +30 ms",
        r"dead letters +8  open",
        r"7  23505 unique_violation +public.users",
        r"1  not given to Postgres +public.users",
        r"owner for",
        r"owner host:1",
    ):
        assert re.search(pattern, text), f"{pattern} is not in:\n{text}"
    assert "▁" in text


def test_it_names_the_lock_that_the_oldest_batch_waits_for(told: Told) -> None:
    told.metrics.queue_is(3, 3, 1, 13.0)
    told.state.delay_is('a lock in "users" (SQLSTATE 55P03)')
    text = " ".join(drawn([answer(told.overview())], ["http://one:1"]).split())
    assert 'The oldest batch waits for a lock in "users" (SQLSTATE 55P03). 6 writes wait' in text
    assert "Behind" not in text


def test_the_owner_is_shown_and_the_others_are_listed(told: Told) -> None:
    standby = Told()
    standby.state.role_is("standby", owner="host:1")
    standby.metrics.lease_is(False)
    urls = ["http://one:1", "http://two:2", "http://three:3"]
    text = drawn(
        [answer(standby.overview()), answer(told.overview()), Answer(urls[2], 100.0, None, "refused")], urls
    )
    assert text.index("All is well") < text.index("Standby: host:1 owns the queue")
    assert re.search(r"> http://two:2 .* owner: All is well", text)
    assert "✗ http://three:3 does not answer: refused" in text


def test_each_shard_has_its_row_whichever_of_the_workers_owns_it(told: Told) -> None:
    others = Told()
    for n, worker in enumerate((told, others)):
        worker.metrics.lease_is(n == 0)
        for shard in (1, 2):
            part = worker.metrics.part(f"db:write:queue:{shard}of2")
            part.lease_is(shard == n + 1)
            part.queue_is(10 * shard, 2, 1, float(shard))
    found = told.overview()
    assert [(s.queue, s.oldest_age_s, s.waiting) for s in found.shards] == [
        ("db:write:queue:1of2", 1.0, 12),
        ("db:write:queue", 0.0, 0),
    ]
    later = msgspec.structs.replace(others.overview(), process="later:2")
    text = drawn([answer(found), answer(later)], ["http://one:1", "http://two:2"])
    rows = [line.split() for line in text.splitlines() if re.match(r"db:write:queue\S* +oldest", line)]
    assert [(row[0], row[-1]) for row in rows] == [
        ("db:write:queue:2of2", "later:2"),
        ("db:write:queue:1of2", found.process),
        ("db:write:queue", found.process),
    ]
    assert "oldest 2.0 s  22 wait  later:2" in text


def test_a_queue_without_shards_has_no_such_rows(told: Told) -> None:
    assert told.overview().shards == []
    assert "shards" not in drawn([answer(told.overview())], ["http://one:1"])


def test_of_many_shards_the_latest_are_told(told: Told) -> None:
    for n in range(1, 101):
        part = told.metrics.part(f"db:write:queue:{n}of100")
        part.lease_is(True)
        part.queue_is(1, 0, 0, float(n))
    found = told.overview()
    assert (found.shards_owned, found.shards[0].queue) == (101, "db:write:queue:100of100")
    text = drawn([answer(found)], ["http://one:1"])
    assert f"and {101 - len(found.shards)} shards more" in text and "db:write:queue:1of100 " not in text


def test_of_two_who_believe_to_be_the_owner_the_last_one_is_shown(told: Told) -> None:
    zombie, later = told.overview(), msgspec.structs.replace(told.overview(), epoch=9)
    assert chosen([zombie, later, zombie]) is later
    assert chosen([]) is None


def test_an_answer_that_is_old_is_not_shown_as_if_it_were_so(told: Told) -> None:
    old = Answer("http://one:1", 90.0, told.overview())
    text = drawn([old], ["http://one:1"])
    assert "All is well" not in text
    assert "http://one:1" in text


def test_no_terminal_obeys_what_a_name_or_a_reason_holds(told: Told) -> None:
    told.state.paused_is("[bold]x[/bold] \x1b]0;pwned\x07 \x1b[2J")
    told.state.role_is("owner", 1, "\x1b[31mhost")
    told.metrics.dead_letters_are({("\x1b[2Jusers\r\n", "\x9b2J"): 1})
    text = drawn([answer(told.overview())], ["http://one:1"])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "[bold]x[/bold]" in text


def test_without_colours_and_without_unicode(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = drawn([answer(told.overview())], ["u"], force_terminal=True, color_system="truecolor")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)
    monkeypatch.delenv("NO_COLOR")
    text = drawn([answer(told.overview())], ["u"], force_terminal=True, color_system="truecolor")
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", text)
    with told.served() as url:
        result = subprocess.run(
            [sys.executable, "-m", "writebehind_worker", "top", "--url", url],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            cwd=ROOT, capture_output=True, timeout=20, check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert b"All is well" in result.stdout


@contextmanager
def served(body: bytes, status: int = 200) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"version":1}', b"\xff\xfe", b"[" * 100_000])
def test_an_answer_of_something_else_is_said_to_be_one(body: bytes) -> None:
    with served(body) as url:
        code, text = top("--once", "--url", url)
    assert (code, "no status of writebehind" in " ".join(text.split())) == (1, True)


def test_an_earlier_version_has_no_such_page() -> None:
    with served(b"", 404) as url:
        code, text = top("--once", "--url", url)
    assert (code, "404" in text) == (1, True)


def test_a_worker_of_a_later_version_may_tell_more(told: Told) -> None:
    more = msgspec.json.encode(msgspec.to_builtins(told.overview()) | {"news": 1})
    with served(more) as url:
        assert top("--once", "--url", url)[0] == 0


def test_nobody_there() -> None:
    code, text = top("--once", "--metrics-host", "0.0.0.0", "--metrics-port", str(free_port()))
    assert code == 1
    assert "http://127.0.0.1:" in text
    assert "connection refused" in text
    said = " ".join(text.split())
    assert "Does a worker run there?" in said and "`writebehind status` needs no worker" in said
    assert "Asking again" not in said, "it was asked once"
    assert "Asking again" in " ".join(drawn([None], ["http://one:1"]).split())


@pytest.mark.parametrize(
    "url",
    ["localhost:9753", "ftp://host:1", "http://", "http://host:x", "http://me:hunter2@host:1", "http://h:0"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    code, text = top("--url", url)
    assert (code, "--url" in text, "hunter2" in text) == (2, True, False)


def test_a_worker_without_an_endpoint_cannot_be_asked() -> None:
    code, text = top("--metrics-port", "0")
    assert (code, "no endpoint" in text) == (2, True)


def _as_from_a_terminal() -> None:
    """What runs in the background of a script ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """``writebehind top`` on a terminal of its own; ``text`` is all that it has written."""

    def __init__(self, *arguments: str, rows: int = 40, columns: int = 100) -> None:
        self._ours, self._its = pty.openpty()
        self.be(rows, columns)
        self.before = termios.tcgetattr(self._its)
        inherited = {n: v for n, v in os.environ.items() if n not in ("COLUMNS", "LINES", "NO_COLOR")}
        environment = inherited | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "writebehind_worker", "top", *arguments],
            cwd=ROOT, stdin=self._its, stdout=self._its, stderr=self._its,
            env=environment, start_new_session=True,
            preexec_fn=_as_from_a_terminal,
        )  # fmt: skip
        self.text = ""

    def be(self, rows: int, columns: int) -> None:
        """Of this size."""
        fcntl.ioctl(self._its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> str:
        """All up to now."""
        while select.select([self._ours], [], [], 0)[0]:
            self.text += os.read(self._ours, 65536).decode(errors="replace")
        return self.text

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.read(), message=f"{text!r} was not shown")

    def has_line_of(self, columns: int) -> bool:
        """Whether what it has written last is so wide: the lines with figures are."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.read()[-10_000:])
        return any(
            len(line.rstrip()) == columns for line in plain.replace("\r", "").split("\n") if "max" in line
        )

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._its)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        with suppress(OSError):
            os.close(self._ours)
            os.close(self._its)


def test_live_with_a_real_worker_that_is_killed(
    redis_url: str, postgres_url: str, queue: str, redis_client: redis.Redis
) -> None:
    port = free_port()
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    url = f"http://127.0.0.1:{port}"
    with Terminal("--url", url) as screen:
        screen.wait_for("connection refused")
        with WorkerProcess(**options, metrics_host="127.0.0.1", metrics_port=port):
            screen.wait_for("All is well")
            assert queue in screen.text
            redis_client.lpush(queue, '{"table":"nowhere","id":1,"data":{"name":"x"}}')
            screen.wait_for("42P01 undefined_table")
            screen.be(30, 140)
            wait_until(lambda: screen.has_line_of(140), message="it was not drawn again for the wider window")
        screen.text = ""
        screen.wait_for("connection refused")
        assert "42P01" not in screen.text.rpartition("connection refused")[2]
        screen.type(b"q")
        assert screen.process.wait(5) == 0
        assert screen.settings == screen.before
        assert screen.read().endswith("\x1b[?25h\x1b[?1049l"), "no cursor, or not the screen of before"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(told: Told, number: signal.Signals, code: int) -> None:
    with told.served() as url, Terminal("--url", url) as screen:
        screen.wait_for("All is well")
        assert screen.settings != screen.before
        screen.process.send_signal(number)
        assert screen.process.wait(30) == code
        assert screen.settings == screen.before
        assert "\x1b[?1049l" in screen.read(), "the screen of before is shown again"
        assert "Traceback" not in screen.text


def test_a_small_window_shows_what_matters_most(told: Told) -> None:
    with told.served() as url, Terminal("--url", url, rows=6, columns=40) as screen:
        screen.wait_for("All is well")
        screen.type(b"q")
        assert screen.process.wait(5) == 0
