"""The demo as a user runs it: its outcome, and that an interrupted one leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from writebehind_worker.demo_check import fault, merged
from writebehind_worker.demo_load import Expected, row_key, shared_rows
from writebehind_worker.testing.servers import new_data_dir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc"),
]

DATA_DIR = "writebehind-????????"


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    """A folder that every account can reach, for the demo's own; its name marks the demo's processes."""
    folder = new_data_dir()
    yield folder
    shutil.rmtree(folder)


def start_demo(temp_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "writebehind_worker", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(temp_dir), "WRITEBEHIND_QUEUE": "not:the:demo's", "PGPORT": "1"},
    )


def left_behind(temp_dir: Path) -> list[str]:
    """Command lines that name the folder, or whose environment does."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if str(temp_dir).encode() in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_nothing_is_lost_repeated_or_stale(temp_dir: Path) -> None:
    demo = start_demo(temp_dir, "--writes", "4000", "--rows", "500")
    output, _ = demo.communicate(timeout=90)
    assert demo.returncode == 0, output
    assert output.splitlines()[-1] == "demo: 4,000 writes, 1 worker killed, 0 lost, 0 repeated, 0 stale"
    assert re.search(r"Worker killed \(SIGKILL\)", output)
    assert re.search(r"durable [\d,]+  queue [\d,]+  .*oldest pending .*coalescing", output)
    assert not left_behind(temp_dir)
    assert not list(temp_dir.glob(DATA_DIR))


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        ("answer after", signal.SIGTERM),
        ("durable", signal.SIGINT),
        ("Worker killed", signal.SIGINT),
        ("Worker killed", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_nothing_behind(temp_dir: Path, moment: str, signum: int) -> None:
    demo = start_demo(temp_dir, "--writes", "20000", "--rows", "500")
    assert demo.stdout
    for line in demo.stdout:
        if moment in line:
            break
    assert left_behind(temp_dir)
    demo.send_signal(signum)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert wait_until(lambda: not left_behind(temp_dir)), left_behind(temp_dir)
    assert not list(temp_dir.glob(DATA_DIR))


@pytest.mark.parametrize(
    ("want", "have", "found"),
    [
        ({"n": 2, "name": "Ada"}, {"n": 2, "name": "Ada"}, None),
        ({"n": Decimal("2.50")}, {"n": Decimal("2.5")}, None),
        (None, None, None),
        ({"n": 2}, None, "lost"),
        ({"n": 2}, {"n": 1}, "lost"),
        ({"n": 2}, {"n": 3}, "repeated"),
        ({"n": 2, "name": "Ada"}, {"n": 2, "name": "Eve"}, "stale"),
        (None, {"n": 2}, "stale"),
    ],
)
def test_every_fault_is_found(want: dict[str, object], have: dict[str, object], found: str | None) -> None:
    assert fault(want, have, ["n"]) == found


def test_shared_counters_are_the_sum_of_what_all_producers_added() -> None:
    key = row_key(0)
    parts = [Expected({}, [], [(key, {"visits": added})], 0, 0) for added in (3, 4)]
    assert merged(parts, 10)[key] == shared_rows(10)[key] | {"visits": 7}
