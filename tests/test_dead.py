"""`writebehind dead`: dead letters are found, read, sent again just once, and dropped."""

from __future__ import annotations

import datetime as dt
import io
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo
from rich.console import Console
from tests.support.crashing_worker import CrashingWorker
from tests.support.workers import RunningWorker, WorkerProcess, flags

from writebehind import WriteBehind, WriteRejected
from writebehind.keys import QueueKeys
from writebehind_worker import dead_view
from writebehind_worker.cli import cli
from writebehind_worker.config import SETTINGS
from writebehind_worker.dead import Letter
from writebehind_worker.testing.wait import wait_until

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, name text, age int CHECK (age >= 0));
CREATE TABLE counters (id int PRIMARY KEY, n bigint, CONSTRAINT closed CHECK (n < 0));
CREATE SCHEMA app; CREATE TABLE app.users (id int PRIMARY KEY, name text, age int CHECK (age >= 0));
"""
Row = dict[str, Any]


class Office:
    """A queue with its tables, a worker when asked for, and the command line."""

    def __init__(self, redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any]) -> None:
        self.urls = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
        self.keys, self.pg = QueueKeys(queue), pg
        self.redis = redis.Redis.from_url(redis_url)
        self.wb = WriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:")
        pg.execute(TABLES.encode())

    def worker(self, **options: Any) -> RunningWorker:
        return RunningWorker(**self.urls, **options)

    def drain(self) -> None:
        """Lets a worker do all there is."""
        with self.worker():
            self.wait_until_drained()

    def wait_until_drained(self) -> None:
        wait_until(lambda: not self.redis.exists(self.keys.queue, self.keys.inflight))

    def push(self, *items: Row | bytes) -> None:
        for item in items:
            self.redis.lpush(self.keys.queue, item if isinstance(item, bytes) else json.dumps(item))

    def open_counters(self) -> None:
        """What made the increments dead letters is mended."""
        self.pg.execute("ALTER TABLE counters DROP CONSTRAINT closed")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.pg.execute(query.encode()).fetchall()

    def letters(self) -> list[int]:
        return [id for (id,) in self.rows("SELECT id FROM writebehind.dead_letters ORDER BY id")]

    def arguments(self, command: str, *args: str, **urls: str) -> list[str]:
        names = ("postgres_url", "queue") if command in ("list", "show") else tuple(self.urls)
        given = self.urls | urls
        return ["dead", command, *args, *(part for n in names for part in (SETTINGS[n].flag, given[n]))]

    def run(self, command: str, *args: str, stdin: str | None = None, **urls: str) -> Result:
        return CliRunner().invoke(cli, self.arguments(command, *args, **urls), input=stdin)

    def listed(self, *args: str) -> list[int]:
        """The ids that `dead list` with these filters finds."""
        result = self.run("list", "--json", *args)
        assert result.exit_code == 0, result.output
        return [letter["id"] for letter in json.loads(result.output)]


def add(id: int, n: int = 1) -> Row:
    return {"table": "counters", "id": id, "op": "increment", "data": {"n": n}}


def bad_user(id: int, table: str = "users") -> Row:
    return {"table": table, "id": id, "data": {"name": f"name {id}", "age": -1}}


@pytest.fixture
def office(redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any]) -> Iterator[Office]:
    office = Office(redis_url, postgres_url, queue, pg)
    yield office
    office.wb.close()
    office.redis.close()


@pytest.fixture
def mixed(office: Office) -> Office:
    """1, 2: users; 3: app.users; 4: no message; 5: an unknown column; 6, 7: counters, 6 superseded."""
    office.push(bad_user(1), bad_user(2), bad_user(3, "app.users"), b"\x1b[31m{\xff")
    office.push({"table": "users", "id": 4, "data": {"nick": "x"}}, add(1), add(2))
    office.drain()
    office.push(add(1, -5))
    office.drain()
    assert office.letters() == [1, 2, 3, 4, 5, 6, 7]
    return office


# list and show.


def test_list_finds_by_table_code_kind_age_and_state(mixed: Office) -> None:
    mixed.pg.execute(
        "UPDATE writebehind.dead_letters SET created_at = now() - interval '2 hours' WHERE id < 3"
    )
    mixed.pg.execute("UPDATE writebehind.dead_letters SET kind = 'rollback' WHERE id = 7")
    for args, ids in [
        ([], [1, 2, 3, 4, 5, 7]),
        (["--all"], [1, 2, 3, 4, 5, 6, 7]),
        (["--superseded"], [6]),
        (["--table", "users"], [1, 2, 3, 5]),
        (["--table", "public.users"], [1, 2, 5]),
        (["--table", "app.users", "--limit", "1"], [3]),
        (["--sqlstate", "42703"], [5]),
        (["--kind", "rollback"], [7]),
        (["--older-than", "1.5h"], [1, 2]),
        (["--newer-than", "90m", "--table", "users"], [3, 5]),
        (["--older-than", "1d"], []),
        (["--limit", "2"], [1, 2]),
    ]:
        assert mixed.listed(*args) == ids, args


def test_list_is_a_table_with_the_reasons_counted(mixed: Office) -> None:
    shown = mixed.run("list", "--limit", "3").output
    assert "users_age_check" in shown
    assert "6 dead letters, by reason:" in shown
    assert "2  public.users: 23514 check_violation" in shown
    assert "1  no table: 22P02 invalid_text_representation" in shown
    assert "The oldest 3 are shown; --limit 0 shows all" in shown
    assert "[superseded]" in mixed.run("list", "--all").output


def test_on_a_terminal_the_list_is_a_table_and_what_is_in_it_no_markup() -> None:
    now = dt.datetime.now(dt.UTC)
    since = now - dt.timedelta(hours=5)
    letter = Letter(
        7,
        "q",
        "rejected",
        "app.users",
        '["[red]x"]',
        "23514",
        "a\nb\x9b",
        since,
        None,
        None,
        3,
        1,
        0,
        None,
        None,
        0,
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(dead_view.table([letter], now))
    assert " ".join(console.export_text().split()).endswith(
        '7 5 h app.users ["[red]x"] [3 times] 23514 a b\\x9b'
    )


def test_an_empty_list_says_so(office: Office) -> None:
    assert office.run("list").output == "0 dead letters.\n"
    assert office.listed() == []


def test_more_than_a_page_is_listed_in_order(office: Office) -> None:
    office.pg.execute(
        "INSERT INTO writebehind.dead_letters (queue, batch, position, body, reason) "
        "SELECT %s, 1, i, '', 'because' FROM generate_series(1, 2500) AS i",
        [office.keys.queue],
    )
    assert office.listed() == list(range(1, 2501))


def test_what_a_producer_wrote_does_not_reach_the_terminal_as_control_characters(mixed: Office) -> None:
    mixed.pg.execute("UPDATE writebehind.dead_letters SET reason = E'\\x1b[2J[red]x' WHERE id = 4")
    for shown in (mixed.run("list").output, mixed.run("show", "4").output):
        assert "\x1b" not in shown
        assert "\\x1b[2J[red]x" in shown
    assert "\\x1b[31m{\\xff" in mixed.run("show", "4").output


def test_show_tells_everything_with_each_rejection(mixed: Office) -> None:
    assert mixed.run("retry", "1", "--wait", "0").exit_code == 0
    mixed.drain()
    shown = mixed.run("show", "1").output
    assert "23514 check_violation" in shown
    assert "before       20" in shown
    assert "retried      20" in shown
    assert '{"table":"users","id":1,' in shown.replace('": ', '":').replace(", ", ",")
    found = json.loads(mixed.run("show", "1", "--json").output)
    assert (found["table"], found["key"], found["rejections"]) == ("public.users", '["1"]', 2)
    assert [h["sqlstate"] for h in found["history"]] == ["23514"]
    assert json.loads(found["body"])["id"] == 1
    assert json.loads(mixed.run("show", "4", "--json").output)["body_base64"] == "G1szMW17/w=="
    assert "only forced: a later write of its row" in mixed.run("show", "6").output


def test_show_of_a_letter_that_is_not_there_says_what_to_do(office: Office) -> None:
    result = office.run("show", "17")
    assert result.exit_code == 2
    assert "has no dead letter 17" in result.output
    assert "Hint: see `writebehind dead list --all`" in result.output


# A rejected write, as its application sees it.


def test_a_rejected_write_leaves_the_cache_and_its_receipt_says_why(office: Office) -> None:
    with office.worker():
        office.wb.put("users", 1, {"name": "old", "age": 1}).wait(10)
        receipt = office.wb.put("users", 1, {"name": "new", "age": -1})
        with pytest.raises(WriteRejected, match="users_age_check") as raised:
            receipt.wait(10)
        assert raised.value.sqlstate == "23514"
        assert office.wb.get("users", 1) is None
        loaded = office.wb.get("users", 1, load=lambda _: {"name": "old", "age": 1})
        assert loaded == {"name": "old", "age": 1}


# retry.


def test_a_retried_write_of_the_library_is_shown_until_it_lands(office: Office) -> None:
    office.wb.put("users", 1, {"name": "Ada", "age": -1})
    office.drain()
    office.pg.execute("ALTER TABLE users DROP CONSTRAINT users_age_check")
    assert office.run("retry", "1", "--wait", "0").output == "Sent 1 dead letter again.\n"
    assert office.wb.get("users", 1) == {"name": "Ada", "age": -1}
    office.drain()
    assert office.rows("SELECT id, name, age FROM users") == [(1, "Ada", -1)]
    assert office.letters() == []
    assert office.wb.get("users", 1) is None  # what has become of a retry, only Postgres knows


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_retry_without_effect_leaves_nothing_in_the_cache(office: Office, is_killed: bool) -> None:
    """Nor when another worker settles its batch, which cannot tell."""
    office.wb.put("users", 1, {"name": "Ada", "age": -1})
    office.drain()
    office.run("retry", "1", "--wait", "0")
    office.pg.execute("DELETE FROM writebehind.dead_letters")
    if is_killed:
        with CrashingWorker("commit:after:1", flags(**office.urls, lease_ttl_s=0.5)) as dying:
            dying.wait_for_death()
    with office.worker() as worker:
        office.wait_until_drained()
        passed_over = worker.metric("writes_total", table="unknown", outcome="passed_over")
        assert passed_over == (0 if is_killed else 1)
    assert office.wb.get("users", 1) is None
    assert office.rows("SELECT FROM users") == []


def test_a_write_pushed_without_the_library_is_retried_so(office: Office) -> None:
    office.push(add(1, 3))
    office.drain()
    office.open_counters()
    with office.worker():
        result = office.run("retry", "--table", "counters")
    assert result.exit_code == 0
    assert "Sent 1 dead letter again.\n" in result.output
    assert "In Postgres: 1 landed, 0 came back.\n" in result.output
    assert office.rows("SELECT id, n FROM counters") == [(1, 3)]


def test_a_letter_whose_row_was_not_known_overwrites_no_later_write_unless_forced(office: Office) -> None:
    office.push({"table": "pages", "id": 1, "data": {"n": 1}}, {"table": "pages", "id": 2, "data": {"n": 1}})
    office.drain()
    office.pg.execute("CREATE TABLE pages (id int PRIMARY KEY, n int)")
    office.push({"table": "pages", "id": 1, "data": {"n": 2}})
    office.drain()
    for ids in (["1", "2"], ["--all"]):
        result = office.run("retry", *ids, "--wait", "0")
        assert result.exit_code == 1
        assert "2 dead letters not sent: which rows they are for could not be told" in result.output
    assert office.run("retry", "2", "--force", "--wait", "0").exit_code == 0
    office.drain()
    assert office.rows("SELECT id, n FROM pages ORDER BY id") == [(1, 2), (2, 1)]
    assert office.letters() == [1]


def test_what_comes_back_is_told_with_its_reason(mixed: Office) -> None:
    mixed.open_counters()
    with mixed.worker():
        result = mixed.run("retry", "--all")
    assert result.exit_code == 1
    assert "Sent 5 dead letters again." in result.output
    assert "1 dead letter cannot be sent again: no JSON objects. Correct each" in result.output
    assert "1 more are superseded by later writes of their rows (--force)." in result.output
    assert "In Postgres: 1 landed, 4 came back." in result.output
    assert "3  23514 check_violation, for one 1: " in result.output
    assert "1  42703 undefined_column, for one 5: " in result.output
    assert mixed.letters() == [1, 2, 3, 4, 5, 6]


def test_without_a_worker_it_says_that_they_wait(mixed: Office) -> None:
    result = mixed.run("retry", "1", "2", "--wait", "0.05")
    assert result.exit_code == 1
    assert "2 have no outcome after 0.05 s: they wait in the queue" in result.output


def test_a_superseded_one_and_one_of_a_rollback_are_sent_only_by_force(mixed: Office) -> None:
    mixed.open_counters()
    mixed.pg.execute("UPDATE writebehind.dead_letters SET kind = 'rollback' WHERE id = 7")
    result = mixed.run("retry", "6", "7", "99")
    assert result.exit_code == 1
    assert "Sent 0 dead letters again." in result.output
    assert "6: a later write of its row has been applied" in result.output
    assert "7: it was applied before Redis went back in time" in result.output
    assert "99: no such dead letter here" in result.output
    refused = mixed.run("retry", "--kind", "rollback")
    assert refused.exit_code == 2
    assert "--force applies them a second time" in refused.output
    with mixed.worker():
        assert mixed.run("retry", "--force", "--table", "counters").exit_code == 0
        assert mixed.letters() == [1, 2, 3, 4, 5, 7]
        assert mixed.run("retry", "--force", "--kind", "rollback").exit_code == 0
    assert mixed.rows("SELECT id, n FROM counters ORDER BY id") == [(1, -4), (2, 1)]


@pytest.mark.parametrize("command", ["retry", "drop"])
def test_not_to_say_which_is_refused(office: Office, command: str) -> None:
    result = office.run(command)
    assert result.exit_code == 2
    assert "give ids, a filter (--table, …), or --all" in result.output


def test_a_full_queue_stops_the_retry_and_the_same_command_goes_on(office: Office) -> None:
    for i in range(3):
        office.push(add(i), add(i))
        office.wb.increment("counters", i, {"n": 1})
    office.drain()
    office.open_counters()
    result = office.run("retry", "--all", "--max-queue-length", "5")
    assert result.exit_code == 2
    assert "Sent 5 dead letters again." in result.output
    assert "is full: 5 writes pending, at most 5 allowed" in result.output
    assert "Hint: what was sent stays sent" in result.output
    office.drain()
    assert len(office.letters()) == 4
    with office.worker():
        assert office.run("retry", "--all").exit_code == 0
    assert office.rows("SELECT DISTINCT n FROM counters") == [(3,)]


KILLED = """
import os, signal, sys
from writebehind_worker import dead_retry
from writebehind_worker.cli import cli
when, nth = sys.argv[1], int(sys.argv[2])
dead_retry._BYTES_AT_ONCE = 500
inner, calls = dead_retry.Sender.{method}, 0
def killed(*args):
    global calls
    calls += 1
    if calls == nth and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    inner(*args)
    if calls == nth and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
dead_retry.Sender.{method} = killed
cli(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("method", "when", "nth"), [("_accept", "before", 2), ("_accept", "after", 1), ("_push", "after", 3)]
)
def test_killed_while_it_sends_and_run_again_each_write_takes_effect_once(
    office: Office, method: str, when: str, nth: int
) -> None:
    for i in range(40):
        if method == "_push":
            office.push(add(i % 5, i))
        else:
            office.wb.increment("counters", i % 5, {"n": i})
    office.drain()
    office.open_counters()
    arguments = office.arguments("retry", "--all", "--wait", "0")
    code = KILLED.format(method=method)
    killed = subprocess.run([sys.executable, "-c", code, when, str(nth), *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    sent = office.redis.llen(office.keys.queue)
    assert 0 < sent < 40
    assert office.run("retry", "--all", "--wait", "0").exit_code == 0
    assert office.redis.llen(office.keys.queue) == sent + 40
    office.drain()
    expected = {row: sum(range(row, 40, 5)) for row in range(5)}
    assert dict(office.rows("SELECT id, n FROM counters")) == expected
    assert office.letters() == []


@pytest.mark.parametrize(
    "point",
    ["commit:before:1", "commit:after:1", "acknowledge:before:1"],
)
def test_a_worker_killed_in_a_batch_of_retries_applies_each_once(office: Office, point: str) -> None:
    for i in range(5):
        office.wb.increment("counters", i, {"n": 10 + i})
        office.push(bad_user(i))
    office.drain()
    office.open_counters()
    office.run("retry", "--all", "--wait", "0")
    with CrashingWorker(point, flags(**office.urls, lease_ttl_s=0.5, metrics_port=0)) as worker:
        worker.wait_for_death()
    office.drain()
    assert dict(office.rows("SELECT id, n FROM counters")) == {i: 10 + i for i in range(5)}
    histories = office.rows("SELECT jsonb_array_length(history) FROM writebehind.dead_letters")
    assert histories == [(1,)] * 5
    assert office.wb.get("counters", 1) is None


def test_two_at_the_same_time_apply_each_once(office: Office) -> None:
    office.push(*(add(i % 3) for i in range(60)))
    office.drain()
    office.open_counters()
    command = [sys.executable, "-m", "writebehind_worker", *office.arguments("retry", "--all")]
    with office.worker(batch_size=7):
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
        assert [process.wait(30) for process in running] == [0, 0]
    assert dict(office.rows("SELECT id, n FROM counters")) == {0: 20, 1: 20, 2: 20}


# retry --body.


def test_a_corrected_message_is_sent_in_the_place_of_one_that_was_none(mixed: Office) -> None:
    corrected = json.dumps({"table": "users", "id": 4, "data": {"name": "mended"}})
    with mixed.worker():
        assert mixed.run("retry", "4", "--body", corrected).exit_code == 0
    assert mixed.rows("SELECT id, name FROM users") == [(4, "mended")]
    assert 4 not in mixed.letters()


def test_a_corrected_message_keeps_the_cache_entry_of_its_row(office: Office) -> None:
    office.wb.put("users", 1, {"name": "Ada", "age": -1})
    office.drain()
    corrected = json.dumps({"table": "users", "id": 1, "data": {"name": "Ada", "age": 36}})
    assert office.run("retry", "1", "--body", corrected, "--wait", "0").exit_code == 0
    assert office.wb.get("users", 1) == {"name": "Ada", "age": 36}
    office.drain()
    assert office.rows("SELECT name, age FROM users") == [("Ada", 36)]
    assert office.wb.get("users", 1) is None


def test_what_show_gave_can_be_edited_and_sent(office: Office) -> None:
    office.wb.put("users", 1, {"name": "Ada", "age": -1})
    office.drain()
    body = json.loads(office.run("show", "1", "--json").output)["body"].replace("-1", "36")
    assert "seq" in body
    with office.worker():
        assert office.run("retry", "1", "--body", body).exit_code == 0
    assert office.rows("SELECT name, age FROM users") == [("Ada", 36)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "no JSON object"),
        ('{"table": "users", "id": 1}', "`data` is missing"),
        ('{"table": "users", "id": 1, "data": {}, "when": 1}', "unknown field `when`"),
        ('{"table": "users", "id": 1, "op": "upsert", "data": {}}', "`op` must be put"),
        ('{"table": "users", "id": 2, "data": {}, "key": "KEY"}', "cache entry of another row"),
    ],
)
def test_a_correction_that_is_wrong_is_not_sent(office: Office, body: str, said: str) -> None:
    office.wb.put("users", 1, {"name": "Ada", "age": -1})
    office.drain()
    result = office.run("retry", "1", "--body", body.replace("KEY", f"{office.keys.queue}:users:1"))
    assert result.exit_code == 2
    assert said in result.output
    assert "the letter is unchanged" in result.output
    assert (office.letters(), office.redis.llen(office.keys.queue)) == ([1], 0)


def test_a_correction_needs_its_letter(office: Office) -> None:
    result = office.run("retry", "--all", "--body", "{}")
    assert result.exit_code == 2
    assert "--body corrects one letter" in result.output


# drop.


def test_drop_asks_first(mixed: Office) -> None:
    refused = mixed.run("drop", "--table", "users", stdin="n\n")
    assert refused.exit_code == 1
    assert "3  public.users: " in refused.output.replace("2  public", "3  public")
    assert "Drop 4 dead letters for good?" in refused.output
    assert len(mixed.letters()) == 7
    done = mixed.run("drop", "--table", "users", stdin="y\n")
    assert done.exit_code == 0
    assert "Dropped 4 dead letters." in done.output
    assert mixed.letters() == [4, 6, 7]


def test_drop_by_id_by_state_and_all(mixed: Office) -> None:
    result = mixed.run("drop", "2", "99", "--yes")
    assert (result.exit_code, mixed.letters()) == (0, [1, 3, 4, 5, 6, 7])
    assert "1 of the 2 are not there." in result.output
    assert mixed.run("drop", "--superseded", "--yes").output == "Dropped 1 dead letter.\n"
    assert mixed.run("drop", "--all", "--yes").output == "Dropped 5 dead letters.\n"
    assert mixed.letters() == []


def test_the_letters_of_another_queue_are_left_alone(mixed: Office) -> None:
    assert mixed.run("drop", "--all", "--yes", queue="other").output == "Dropped 0 dead letters.\n"
    assert mixed.run("list", queue="other").output == "0 dead letters.\n"
    assert len(mixed.letters()) == 7


@pytest.mark.parametrize("command", ["drop", "retry"])
def test_the_letters_of_a_batch_in_flight_stay_until_receipts_have_heard_of_them(
    office: Office, command: str
) -> None:
    receipt = office.wb.put("users", 1, {"name": "Ada", "age": -1})
    with CrashingWorker(
        "acknowledge:before:1", flags(**office.urls, lease_ttl_s=0.5, metrics_port=0)
    ) as worker:
        worker.wait_for_death()
    assert office.letters() == [1]
    result = office.run(command, "1", *(["--yes"] if command == "drop" else ["--wait", "0"]))
    assert result.exit_code == 1
    assert "their batch is still being finished: run it again in a moment" in result.output
    assert (office.letters(), office.redis.llen(office.keys.queue)) == ([1], 0)
    office.drain()
    with pytest.raises(WriteRejected):
        receipt.wait(1)
    assert office.run("drop", "1", "--yes").exit_code == 0
    assert office.letters() == []


# Rights, servers, schema, metrics.


def test_to_list_show_and_retry_the_right_to_read_is_enough(mixed: Office) -> None:
    role = f"r_{uuid.uuid4().hex[:12]}"
    mixed.pg.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'".encode())
    url = make_conninfo(mixed.urls["postgres_url"], user=role, password="x")
    try:
        refused = mixed.run("list", postgres_url=url)
        assert refused.exit_code == 2
        assert "Hint: grant USAGE of the schema writebehind and SELECT" in refused.output
        mixed.pg.execute(f"GRANT USAGE ON SCHEMA writebehind TO {role}".encode())
        mixed.pg.execute(f"GRANT SELECT ON writebehind.dead_letters TO {role}".encode())
        assert mixed.run("list", postgres_url=url).exit_code == 0
        assert mixed.run("show", "1", postgres_url=url).exit_code == 0
        assert mixed.run("retry", "1", "--wait", "0", postgres_url=url).exit_code == 0
        dropped = mixed.run("drop", "2", "--yes", postgres_url=url)
        assert (dropped.exit_code, len(mixed.letters())) == (2, 7)
    finally:
        mixed.pg.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


@pytest.mark.parametrize(
    ("url", "value", "said"),
    [
        ("redis_url", "redis://:hunter2@127.0.0.1:1/0", "Redis at redis://:***@127.0.0.1:1/0"),
        (
            "postgres_url",
            "postgresql://a:hunter2@127.0.0.1:1/x",
            "Postgres at postgresql://a:***@127.0.0.1:1/x",
        ),
    ],
)
def test_a_server_that_is_down_is_named(office: Office, url: str, value: str, said: str) -> None:
    office.push(add(1))
    office.drain()
    result = office.run("retry", "--all", **{url: value})
    assert result.exit_code == 2
    assert said in result.output
    assert "Hint: check --" in result.output
    assert "hunter2" not in result.output


def test_with_the_schema_of_before_everything_says_to_run_init_and_init_mends_it(office: Office) -> None:
    office.push(add(1))
    office.drain()
    office.pg.execute("ALTER TABLE writebehind.dead_letters DROP COLUMN history, DROP COLUMN retried_at")
    result = office.run("list")
    assert result.exit_code == 2
    assert "are those of an earlier version" in result.output
    assert "Hint: run `writebehind init`" in result.output
    with WorkerProcess(**office.urls) as worker:
        assert worker.wait() == 2
        assert "Hint: run `writebehind init`" in worker.log
    init = CliRunner().invoke(cli, ["init", "--postgres-url", office.urls["postgres_url"]])
    assert init.exit_code == 0
    office.open_counters()
    with office.worker():
        assert office.run("retry", "--all").exit_code == 0


def test_without_the_right_to_delete_the_worker_says_so_at_once(office: Office) -> None:
    role = f"r_{uuid.uuid4().hex[:12]}"
    office.pg.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA writebehind TO {role}".encode()
    )
    tables = "ON writebehind.ledger, writebehind.dead_letters"
    office.pg.execute(f"GRANT SELECT, INSERT, UPDATE {tables} TO {role}".encode())
    office.pg.execute(f"GRANT SELECT ON writebehind.schema_version TO {role}".encode())
    url = make_conninfo(office.urls["postgres_url"], user=role, password="x")
    try:
        with RunningWorker(**office.urls | {"postgres_url": url}) as worker:
            wait_until(lambda: "may not DELETE" in (worker.facts["postgres_reason"] or ""))
            office.pg.execute(f"GRANT DELETE {tables} TO {role}".encode())
            worker.wait_for_role("owner")
    finally:
        office.pg.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_the_gauge_follows_what_the_commands_do(office: Office) -> None:
    def shown(table: str, sqlstate: str) -> Callable[[], bool]:
        return lambda: worker.metric("dead_letters_open", table=table, sqlstate=sqlstate) == 1

    def gone(table: str, sqlstate: str) -> Callable[[], bool]:
        labels = {"table": table, "sqlstate": sqlstate}
        name = "writebehind_dead_letters_open"
        return lambda: worker.metrics.registry.get_sample_value(name, labels) is None

    with office.worker() as worker:
        office.push(add(1), bad_user(1))
        wait_until(shown("public.counters", "23514"))
        wait_until(shown("public.users", "23514"))
        assert worker.metric("dead_lettered_total", sqlstate="23514") == 2
        office.run("drop", "--table", "users", "--yes")
        wait_until(gone("public.users", "23514"))
        assert shown("public.counters", "23514")()
        office.open_counters()
        office.run("retry", "--all")
        wait_until(gone("public.counters", "23514"))


# The documentation.


def test_every_command_of_the_documentation_exists() -> None:
    text = (Path(__file__).parents[1] / "docs" / "dead-letters.md").read_text()
    commands = [line.split("#")[0] for line in text.splitlines() if line.startswith("writebehind dead ")]
    assert len(commands) > 5
    for command in commands:
        _, *words = [word for word in command.split() if word.isalpha() or word.startswith("--")]
        shown = CliRunner().invoke(cli, ["dead", words[1], "--help"])
        assert shown.exit_code == 0, command
        for flag in (word for word in words if word.startswith("--")):
            assert flag in shown.output, command
