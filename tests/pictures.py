"""Draws docs/status-page.png and docs/top.svg: `python -m tests.pictures`. Two workers share four shards.

It takes three minutes and Chromium. As root on Linux the workers are app-1 and app-2, else what the host is.
"""

from __future__ import annotations

import io
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
from redis import Redis
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from tests.support.browser import browser
from tests.support.workers import ROOT

from writebehind import WriteBehind
from writebehind.keys import QueueKeys
from writebehind_worker.ledger_schema import apply_schema
from writebehind_worker.resharding import divide
from writebehind_worker.testing.servers import private_servers
from writebehind_worker.top_view import frame
from writebehind_worker.watch import ask

SECONDS = 150
SHARDS = 4
PORTS = {"app-1": 9753, "app-2": 9754}
WIDTH = 120
TABLES = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, email text UNIQUE);
CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint REFERENCES users, amount int CHECK (amount > 0));
INSERT INTO users SELECT n, 'user ' || n, n || '@example.com' FROM generate_series(1, 1000) n;
"""
BAD: dict[int, tuple[str, dict[str, Any], int]] = {
    40: ("orders", {"customer": -1}, 12),
    70: ("users", {"email": "1@example.com"}, 4),
    95: ("orders", {"amount": -1}, 1),
}
"""At which second so many writes to a table are refused."""


@contextmanager
def worker(host: str, redis_url: str, postgres_url: str) -> Iterator[str]:
    """Where its endpoint is."""
    port = PORTS[host]
    urls = ["--redis-url", redis_url, "--postgres-url", postgres_url]
    command = [sys.executable, "-m", "writebehind_worker", "run", *urls]
    command += ["--metrics-host", "127.0.0.1", "--metrics-port", str(port)]
    if sys.platform == "linux" and os.geteuid() == 0:
        command = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def load(wb: WriteBehind) -> Iterator[float]:
    """Waves of writes, often of the same rows, without an end; the seconds since its beginning."""
    chance, began, bad = random.Random(1), time.monotonic(), dict(BAD)
    while True:
        yield (second := time.monotonic() - began)
        with wb.batch() as batch:
            for _ in range(int(110 + 100 * math.sin(second / 8))):
                id = min(1000, int(chance.paretovariate(0.4)))
                batch.put("users", id, {"name": f"user {chance.random()}"})
            for at in [at for at in bad if at <= second]:
                table, columns, count = bad.pop(at)
                for id in range(2000 + at, 2000 + at + count):
                    batch.put(table, id, columns)
        time.sleep(0.1)


def drawn(urls: list[str]) -> str:
    """What `writebehind top` shows, as SVG that loads no font."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(frame([ask(url) for url in urls], urls, time.monotonic()))
    code = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    code = code.replace("Fira Code, monospace", "monospace").replace(" arial", " monospace")
    svg = console.export_svg(title="writebehind top", code_format=code, unique_id="top")
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def main() -> None:
    """Writes both files."""
    with private_servers() as servers, ExitStack() as stack:
        with psycopg.connect(servers.postgres_url) as conn:
            apply_schema(conn)
            conn.execute(TABLES)
        divide(Redis.from_url(servers.redis_url), QueueKeys(), SHARDS)
        urls = [stack.enter_context(worker(host, servers.redis_url, servers.postgres_url)) for host in PORTS]
        chromium = stack.enter_context(browser())
        wb = stack.enter_context(WriteBehind.from_url(servers.redis_url))
        time.sleep(20)  # two lease periods: the shards are shared
        chromium.be(1100, 800)
        chromium.open(urls[0])
        for second in load(wb):
            if second > SECONDS and (found := ask(urls[0]).overview) and found.waiting:
                break
        (ROOT / "docs" / "top.svg").write_text(drawn(urls))
        chromium.screenshot(ROOT / "docs" / "status-page.png")


if __name__ == "__main__":
    main()
