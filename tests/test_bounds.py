"""The tables of delays and time-outs in docs/guarantees.md are those of the code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from writebehind.pauses import pauses
from writebehind_worker import ledger, persist, postgres, redis_server, tenure, worker
from writebehind_worker.backoff import Backoff
from writebehind_worker.config import SETTINGS

TEXT = (Path(__file__).parents[1] / "docs" / "guarantees.md").read_text()
ROWS = {
    cells[0]: cells[1:]
    for cells in ([c.strip() for c in li.split("|")[1:-1]] for li in TEXT.splitlines())
    if cells
}


def row(begin: str) -> list[str]:
    return next(cells for name, cells in ROWS.items() if name.startswith(begin))


def default(name: str) -> str:
    return f"`{SETTINGS[name].flag}`, {SETTINGS[name].default:g}"


GROWING = Backoff()
PAUSES = {name: p.default for name, p in inspect.signature(pauses).parameters.items()}


@pytest.mark.parametrize(
    ("what", "first_s", "factor", "longest_s"),
    [
        ("a server that is away", GROWING.first_s, 2, GROWING.longest_s),
        ("a batch that Postgres refuses", GROWING.first_s, 2, GROWING.longest_s),
        ("a row that somebody locks", GROWING.first_s, 2, persist._LOCK_PAUSE_S),
        ("a standby asking", worker._STANDBY_POLL_S, 1, worker._STANDBY_POLL_S),
        ("looking for items while Redis is full", tenure._POLL_FULL_S, 1, tenure._POLL_FULL_S),
        ("a receipt's `wait`", PAUSES["first_s"], PAUSES["factor"], PAUSES["longest_s"]),
    ],
)
def test_delays(what: str, first_s: float, factor: float, longest_s: float) -> None:
    assert row(what)[:3] == [f"{first_s:g} s", f"{factor:g}", f"{longest_s:g} s"]


def test_the_growing_delays_double_until_the_longest_and_take_the_upper_half() -> None:
    delays = Backoff()
    whole = [delays.next_s(draw=1.0) for _ in range(10)]
    assert whole == [min(GROWING.longest_s, GROWING.first_s * 2**i) for i in range(10)]
    assert Backoff().next_s(draw=0.0) == GROWING.first_s / 2


def test_the_pauses_of_one_who_waits_are_a_small_share_of_what_was_waited() -> None:
    waited, found = 0.0, pauses()
    for i in range(60):
        pause = next(found)
        assert pause == pytest.approx(min(PAUSES["longest_s"], PAUSES["first_s"] * PAUSES["factor"] ** i))
        assert pause <= max(PAUSES["first_s"] * PAUSES["factor"], 0.45 * waited, 0.002)
        waited += pause
        assert i < 8 or pause <= 0.25 * waited
    assert pause == PAUSES["longest_s"]


def test_what_ends_the_delays() -> None:
    assert f"a tenure of {worker._STABLE_S:g} s" in row("a server that is away")[3]
    assert (
        f"after {persist._REFUSALS_BEFORE_RECONNECTING} refusals" in row("a batch that Postgres refuses")[3]
    )


def test_time_outs() -> None:
    tcp = postgres.DEFAULTS
    idle_s = tcp["keepalives_idle"] + tcp["keepalives_interval"] * tcp["keepalives_count"]
    lives = row("the answer to a statement from a Postgres that lives")[0]
    assert lives == f"{default('statement_timeout_s')}; for a lock {default('lock_timeout_s')}"
    assert row("stopping")[0].startswith(f"{default('stop_timeout_s')}; ")
    assert row("a takeover")[0] == default("lease_ttl_s")
    assert row("an answer of Redis")[0] == f"{redis_server._TIMEOUT_S:g}"
    assert row("connecting to Postgres")[0] == str(tcp["connect_timeout"])
    assert row("the answer from a Postgres that is silent")[0].startswith(f"{postgres.REPLY_GRACE_S:g} more")
    vanished = f"{idle_s} when idle (keepalives), {tcp['tcp_user_timeout'] // 1000} while sending"
    assert row("a Postgres whose host vanished")[0].startswith(vanished)
    assert f"'{row('the ledger')[0]}s'" in ledger._BOUNDED
    assert row("an idle owner's look")[0] == f"every {tenure._IDLE_S:g}"
