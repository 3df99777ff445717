"""The status page in a real browser, of a real worker: what is shown is so, and what is old is not shown."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
import pytest
import redis
from tests.support.browser import Browser, browser
from tests.support.status import Told
from tests.support.workers import ROOT, RunningWorker, WorkerProcess, Workload, free_port

from writebehind.keys import QueueKeys
from writebehind_worker.course import Course
from writebehind_worker.figures import MOST_REASONS
from writebehind_worker.overview import overview
from writebehind_worker.pause import pause
from writebehind_worker.quantities import count, duration, rate, ratio
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until

SCREENSHOTS = ROOT / "build" / "screenshots"
HOSTILE = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
PHONE, DESKTOP = (360, 720), (1280, 800)
CARDS = ("waiting", "oldest", "throughput", "coalescing", "flush", "lag", "retries", "dead-letters")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def be_in_trouble(told: Told) -> None:
    """In as much as can be, with names as long as they may be."""
    told.metrics.queue_is(123_456_789, 5000, 48, 123_456)
    told.metrics.redis_risks_are(["eviction", "persistence", "memory"])
    told.metrics.dead_letters_are(
        {(f"a_schema_with_a_name.and_a_table_{n}_" + "x" * 40, "23505"): 10**n for n in range(9)}
    )
    told.state.breaker_is("the last 1000 writes to x were all refused")
    told.state.postgres_is(False, "Postgres: " + "connection_refused_" * 20)


def now_shown(page: Browser) -> dict[str, str]:
    return {card: page.text(f"now-{card}") for card in CARDS}


@contextmanager
def load_of(load: Workload) -> Iterator[None]:
    """Some thousand writes a second."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.02):
            load.add(100)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_of_a_worker_at_work_and_of_one_that_is_killed(
    chromium: Browser,
    load: Workload,
    redis_url: str,
    postgres_url: str,
    queue: str,
    redis_client: redis.Redis,
) -> None:
    port = free_port()
    origin = f"http://127.0.0.1:{port}/"
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    with WorkerProcess(**options, metrics_host="127.0.0.1", metrics_port=port) as worker:
        worker.wait_for_event("owner")
        chromium.be(*DESKTOP)
        chromium.requests(), chromium.complaints()
        chromium.open(origin)
        wait_until(lambda: "nothing waits" in chromium.text("sentence"))
        assert (chromium.text("queue"), chromium.text("badge")) == (queue, "owner")
        assert now_shown(chromium)["throughput"] == "0"
        with load_of(load):
            redis_client.lpush(queue, '{"table":"users","id":"hunter2","data":{"name":"x"}}')
            seen: set[str] = set()
            while len(seen) < 3:  # pytest's timeout ends it
                seen.add(now_shown(chromium)["throughput"])
                time.sleep(0.1)  # the page asks once a second; to look without end takes a core
            wait_until(lambda: "22P02" in chromium.text("dead"))
            shown = now_shown(chromium)
            chromium.screenshot(SCREENSHOTS / "busy.png")
        assert "—" not in shown.values(), shown
        assert float(shown["coalescing"]) > 1
        assert re.search(r"1\s+22P02 invalid_text_representation public.users", chromium.text("dead"))
        assert "1 dead letter is open" in chromium.text("sentence")
        assert chromium.run("return document.querySelector('#cards path:not(.area)').getAttribute('d')")
        assert chromium.complaints() == []
        asked = chromium.requests()
        assert {url for url in asked if not url.startswith("data:")} == {origin, f"{origin}status.json"}
        assert "hunter2" not in chromium.run("return document.documentElement.outerHTML")

        worker.kill()
        wait_until(lambda: "has not answered for" in chromium.text("sentence"))
        assert set(now_shown(chromium).values()) == {"—"}
        assert (chromium.text("badge"), chromium.text("dead"), chromium.text("facts")) == ("—", "—", "")
        assert chromium.run("return document.title").startswith("✗ No answer")
        assert "until" in chromium.text("cards")
        chromium.screenshot(SCREENSHOTS / "killed.png")


def test_a_worker_that_is_stopped_is_not_shown_as_live_and_is_shown_again(
    chromium: Browser, redis_url: str, postgres_url: str, queue: str
) -> None:
    port = free_port()
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue, "lease_ttl_s": 30.0}
    with WorkerProcess(**options, metrics_host="127.0.0.1", metrics_port=port) as worker:
        worker.wait_for_event("owner")
        chromium.open(f"http://127.0.0.1:{port}/")
        wait_until(lambda: "All is well" in chromium.text("sentence"))
        worker.pause()  # it takes connections and says nothing
        wait_until(lambda: "has not answered for" in chromium.text("sentence"), timeout=15)
        assert set(now_shown(chromium).values()) == {"—"}
        worker.resume()
        wait_until(lambda: "All is well" in chromium.text("sentence"))
        assert now_shown(chromium)["waiting"] == "0"


def test_names_and_reasons_are_text_whatever_they_hold(chromium: Browser) -> None:
    told = Told(HOSTILE)
    told.metrics.dead_letters_are({(HOSTILE, HOSTILE): 1, (HOSTILE, "23505"): 2})
    told.state.role_is("owner", 3, HOSTILE)
    told.state.paused_is(HOSTILE)
    told.state.postgres_is(False, HOSTILE)
    with told.served() as url:
        chromium.complaints()
        chromium.open(url)
        wait_until(lambda: chromium.text("queue") == HOSTILE)
        for id, times in (("notes", 1), ("dead", 3), ("facts", 1)):
            assert chromium.text(id).count("<script>") == times, chromium.text(id)
        assert chromium.run("return [window.broken, document.scripts.length, document.images.length]") == [
            None,
            1,
            0,
        ]
        assert chromium.complaints() == []


def test_the_page_may_run_nothing_else_and_ask_nobody_else(chromium: Browser) -> None:
    with Told().served() as url, Told().served() as other:
        chromium.open(url)
        chromium.run(
            "const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
            " document.body.append(s);"
            " const i = document.createElement('img'); i.setAttribute('onerror', 'window.broken = 1');"
            " i.src = 'x'; document.body.append(i);"
        )
        ask = "return fetch(arguments[0]).then(r => r.status, error => 'refused')"
        assert chromium.driver.execute_script(ask, f"{url}/status.json") == 200
        assert chromium.driver.execute_script(ask, f"{other}/status.json") == "refused"
        assert chromium.run("return window.broken ?? null") is None
        assert sum("Content Security Policy" in text for text in chromium.complaints()) >= 3


def test_the_headers_of_the_page_and_of_its_data() -> None:
    with Told().served() as url:
        for path in ("/", "/status.json"):
            with urllib.request.urlopen(url + path, timeout=5) as response:
                headers = response.headers
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
        with urllib.request.urlopen(url, timeout=5) as response:
            policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["good", "notice", "trouble"])
def test_it_can_be_read_on_any_screen(chromium: Browser, scheme: str, state: str) -> None:
    told = Told()
    if state == "notice":
        told.state.paused_is("paused by an operator: adding a column")
    if state == "trouble":
        be_in_trouble(told)
    with told.served() as url:
        for name, size in {"phone": PHONE, "desktop": DESKTOP}.items():
            chromium.be(*size, scheme)
            chromium.open(url)
            wait_until(
                lambda: chromium.run("return document.getElementById('headline').dataset.level") == state
            )
            assert chromium.run("return document.documentElement.scrollWidth") == size[0], (
                "something overflows"
            )
            assert chromium.run(FAINT) == [], "text that is too faint"
            assert chromium.run(UNLABELLED) == 0, "drawings without a label"
            chromium.screenshot(SCREENSHOTS / f"{state}-{name}-{scheme}.png")


# Texts whose contrast with what is behind them is below WCAG's 4.5.
FAINT = """
const parts = colour => colour.match(/[\\d.]+/g).map(Number);
const light = colour => {
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = parts(colour).map(v => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = node => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if ((parts(colour)[3] ?? 1) > 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
return [...document.querySelectorAll("body *")]
  .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()))
  .filter(node => node.getClientRects().length > 0)
  .filter(node => {
    const [one, two] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    return (one + 0.05) / (two + 0.05) < 4.5;
  }).map(node => node.textContent);
"""
UNLABELLED = (
    "return [...document.querySelectorAll('svg')].filter(node => !node.getAttribute('aria-label')).length"
)


def test_each_shard_that_the_worker_owns_has_a_row(chromium: Browser) -> None:
    told = Told()
    with told.served() as url:
        chromium.open(url)
        wait_until(lambda: "All is well" in chromium.text("sentence"), 20)
        assert not chromium.driver.find_element("id", "shards").is_displayed()
        for n in (1, 2):
            part = told.metrics.part(f"db:write:queue:{n}of2")
            part.lease_is(n == 2)
            part.queue_is(7, 0, 0, 1.5)
        wait_until(lambda: chromium.driver.find_element("id", "shards").is_displayed(), 20)
        rows = [row.text for row in chromium.driver.find_elements("css selector", "#shards tbody tr")]
        assert rows == ["db:write:queue:2of2 1.5 s 7", "db:write:queue 0 s 0"]
        chromium.be(*DESKTOP)
        chromium.screenshot(SCREENSHOTS / "shards.png")


def test_it_rests_while_nobody_sees_it(chromium: Browser) -> None:
    told = Told()
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    tell = "document.dispatchEvent(new Event('visibilitychange'));"
    with told.served() as url:
        chromium.open(url)
        wait_until(lambda: now_shown(chromium)["waiting"] == "0")
        chromium.run(hide % "true" + tell)
        assert set(now_shown(chromium).values()) == {"—"}
        chromium.requests()
        assert chromium.run("return ask().then(() => 1)") == 1
        assert chromium.requests() == []
        chromium.run(hide % "false" + tell)
        wait_until(lambda: now_shown(chromium)["waiting"] == "0")


def test_figures_are_written_as_python_writes_them(chromium: Browser) -> None:
    values = [
        None,
        0,
        0.0004,
        0.0037,
        0.0123,
        0.0996,
        0.26,
        0.31,
        1.24,
        3.847,
        9.94,
        12.3,
        59.6,
        60,
        200,
        3600,
    ]
    values += [7500, 12_345, 90_000, 86_400, 1_234_567]
    with Told().served() as url:
        chromium.open(url)
        for name, write in (("count", count), ("rate", rate), ("ratio", ratio), ("seconds", duration)):
            expected = [write(value) for value in values]
            assert chromium.driver.execute_script(f"return arguments[0].map({name})", values) == expected


def test_the_document_stays_small() -> None:
    told = Told()
    be_in_trouble(told)
    told.state.paused_is("x" * 100_000)
    for second in range(700):
        told.metrics.flushed("users", "applied", 1_000_000 + second * 977)
        told.metrics.rows_written("users", 10_007 * second)
        told.metrics.flush([5000], 0.0123)
        told.metrics.lag(10**15, [10**15 - 1000 * second] * 7)
        told.metrics.retried("x")
        told.metrics.queue_is(123_456 + second * 1009, second * 13, 1, 0.0123 * second)
        told.metrics.dead_letters_are(
            {("t" * 600 + str(n), "23505"): 99_000 + n + second for n in range(100)}
        )
        told.course.add(second, told.metrics.figures())
    found = told.overview()
    assert len(found.course["writes_per_s"]) == 600
    assert len(found.dead_letters_by_reason) == MOST_REASONS
    assert found.dead_letter_reasons == 100
    assert 50_000 < len(msgspec.json.encode(found)) < 100_000


def test_without_postgres_it_is_told_how_much_waits(
    redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any], redis_client: redis.Redis
) -> None:
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    with Proxy.to(postgres_url) as proxy:
        url = proxied_url(postgres_url, proxy.port)
        with RunningWorker(redis_url=redis_url, postgres_url=url, queue=queue) as worker:
            worker.wait_for_role("owner")
            course = Course()
            proxy.refuse()
            proxy.drop_connections()
            wait_until(lambda: worker.facts["postgres_up"] is False)
            for id in range(7):
                redis_client.lpush(queue, b'{"table":"users","id":%d,"data":{"name":"x"}}' % id)
            wait_until(lambda: overview(worker.metrics, worker.state, course).waiting == 7)
            found = overview(worker.metrics, worker.state, course)
            assert found.findings[0].level == "trouble"
            assert "Postgres has taken no writes for" in found.findings[0].text
            assert "7 writes wait" in found.findings[0].text
            assert (found.role, found.owner, found.dead_letters) == ("starting", None, None)
            proxy.accept()
            wait_until(lambda: pg.execute("SELECT count(*) FROM users").fetchone() == (7,))
            wait_until(lambda: overview(worker.metrics, worker.state, course).waiting == 0)
            assert overview(worker.metrics, worker.state, course).role == "owner"


def test_a_standby_tells_who_owns_the_queue_and_an_operator_s_pause_is_said(
    redis_url: str, postgres_url: str, queue: str, redis_client: redis.Redis
) -> None:
    options = {"redis_url": redis_url, "postgres_url": postgres_url, "queue": queue}
    course = Course()
    with RunningWorker(**options) as owner:
        name = owner.wait_for_role("owner")["owner"]
        with RunningWorker(**options) as other:
            other.wait_for_role("standby")
            found = overview(other.metrics, other.state, course)
            assert [f.text for f in found.findings] == [f"Standby: {name} owns the queue and writes."]
            assert (found.role, found.owner, found.waiting, found.dead_letters) == (
                "standby",
                name,
                None,
                None,
            )
        pause(redis_client, QueueKeys(queue), "adding a column")
        wait_until(lambda: owner.facts["paused"] is not None)
        first = overview(owner.metrics, owner.state, course).findings[0]
        assert (first.level, first.text[:39]) == ("notice", "Paused by an operator: adding a column.")
