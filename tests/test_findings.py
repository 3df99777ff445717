"""The sentence that answers: is my data safe, and how far behind is it?"""

from __future__ import annotations

from typing import Any

import pytest

from writebehind_worker.figures import Backlog
from writebehind_worker.findings import Finding, Situation, findings
from writebehind_worker.quantities import UNKNOWN, count, duration, rate, ratio


def waits(length: int, oldest_age_s: float = 0.03) -> Backlog:
    return Backlog(length, 0, 0, oldest_age_s, 0)


WELL: dict[str, Any] = {
    "role": "owner",
    "owner": "host:1",
    "is_owner": True,
    "redis_up": True,
    "postgres_up": True,
    "risks": frozenset(),
    "backlog": waits(0),
    "dead_letters": 0,
    "writes_per_s": 0.0,
    "silent_s": 0.5,
}
LOCK = "put of public.users (seq 17, item 3)"
BREAKER = (
    "the last 1000 writes to public.users were all refused with SQLSTATE 42703 (undefined_column); the queue "
    "waits until that is mended"
)

CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({}, [("good", "All is well: nothing waits, all writes are in Postgres.")]),
    ({"backlog": waits(1)}, [("good", "All is well: 1 write waits, the oldest for 30 ms.")]),
    ({"backlog": waits(1203)}, [("good", "All is well: 1,203 writes wait, the oldest for 30 ms.")]),
    ({"backlog": None}, [("good", "All is well: this worker has just taken the queue.")]),
    (
        {"backlog": waits(120_000, 34), "writes_per_s": 12_000.0},
        [("notice", "Behind by 34 s: 120,000 writes wait; 12,000 a second go in.")],
    ),
    ({"backlog": waits(3, 12)}, [("notice", "Behind by 12 s: 3 writes wait; none goes in.")]),
    (
        {"dead_letters": 7},
        [("notice", "Writes go in: nothing waits. 7 dead letters are open (writebehind dead list).")],
    ),
    (
        {"dead_letters": 1, "backlog": waits(12)},
        [
            (
                "notice",
                "Writes go in: 12 wait, the oldest for 30 ms. 1 dead letter is open (writebehind dead list).",
            )
        ],
    ),
    (
        {"postgres_up": False, "postgres_down_s": 12.3, "backlog": waits(1203, 12)},
        [
            (
                "trouble",
                "Postgres has taken no writes for 12 s. 1,203 writes wait safely in Redis, the oldest for "
                "12 s.",
            )
        ],
    ),
    (
        {"postgres_up": False, "postgres_down_s": 200, "backlog": None, "risks": None, "is_owner": False},
        [("trouble", "Postgres has taken no writes for 3 min 20 s. Writes wait in Redis.")],
    ),
    (
        {
            "postgres_up": False,
            "postgres_down_s": 5,
            "backlog": waits(2),
            "risks": frozenset({"persistence"}),
        },
        [
            (
                "trouble",
                "Postgres has taken no writes for 5.0 s. 2 writes wait in Redis, the oldest for 30 ms.",
            ),
            ("trouble", "What waits in Redis is not on disk (appendonly is off): a restart would lose it."),
        ],
    ),
    (
        {"redis_up": False, "redis_down_s": 61, "postgres_up": False, "backlog": None, "dead_letters": None},
        [
            (
                "trouble",
                "Redis has not answered for 1 min 1 s: no write is accepted, and those accepted before wait "
                "there.",
            )
        ],
    ),
    (
        {"role": "starting", "redis_up": None, "is_owner": False, "backlog": None},
        [("notice", "This worker asks for the queue; who owns it is not known. Writes wait in Redis.")],
    ),
    (
        {"role": "standby", "owner": "host:123", "is_owner": False, "backlog": None, "dead_letters": None},
        [("good", "Standby: host:123 owns the queue and writes.")],
    ),
    (
        {"role": "standby", "is_owner": False, "postgres_up": False, "postgres_down_s": 3, "backlog": None},
        [("trouble", "Postgres has taken no writes for 3.0 s. Writes wait in Redis.")],
    ),
    (
        {"role": "stopping", "backlog": waits(2)},
        [
            (
                "notice",
                "This worker is stopping; another one can go on. 2 writes wait safely in Redis, the oldest "
                "for 30 ms.",
            )
        ],
    ),
    (
        {"is_owner": False, "backlog": None, "dead_letters": None},
        [("notice", "This worker asks for the queue; who owns it is not known. Writes wait in Redis.")],
    ),
    (
        {"paused": "paused by an operator: adding a column"},
        [("notice", "Paused by an operator: adding a column. No writes wait.")],
    ),
    (
        {"paused": "paused by an operator: why?", "backlog": waits(5, 40), "dead_letters": 2},
        [
            ("notice", "Paused by an operator: why? 5 writes wait safely in Redis, the oldest for 40 s."),
            ("notice", "2 dead letters are open (writebehind dead list)."),
        ],
    ),
    (
        {"delay": 'a lock in "users" (SQLSTATE 55P03)', "backlog": waits(3, 8)},
        [
            (
                "notice",
                'The oldest batch waits for a lock in "users" (SQLSTATE 55P03). 3 writes wait safely in '
                "Redis, the oldest for 8.0 s.",
            )
        ],
    ),
    (
        {"held": LOCK, "delay": "x", "backlog": waits(9, 3)},
        [
            (
                "notice",
                f"A write waits for somebody's lock, and all behind it: {LOCK}. 9 writes wait safely in "
                "Redis, the oldest for 3.0 s.",
            )
        ],
    ),
    (
        {"breaker": BREAKER, "backlog": waits(1000, 3)},
        [
            (
                "trouble",
                f"Nothing is written: {BREAKER}. 1,000 writes wait safely in Redis, the oldest for 3.0 s.",
            )
        ],
    ),
    (
        {
            "postgres_up": False,
            "postgres_down_s": 3,
            "reasons": ["Postgres: refused; check that it runs", BREAKER, "the worker is starting"],
            "backlog": None,
        },
        [
            ("trouble", "Postgres has taken no writes for 3.0 s. Writes wait in Redis."),
            ("notice", "Not ready: Postgres: refused; check that it runs"),
            ("notice", f"Not ready: {BREAKER}"),
        ],
    ),
    (
        {"breaker": BREAKER, "reasons": [BREAKER]},
        [("trouble", f"Nothing is written: {BREAKER}. No writes wait.")],
    ),
    (
        {"stalled_s": 75.0, "backlog": waits(4, 80)},
        [
            (
                "trouble",
                "The worker is stuck: its loop has not come round for 1 min 15 s; restart it. 4 writes wait "
                "safely in Redis, the oldest for 1 min 20 s.",
            )
        ],
    ),
    (
        {"silent_s": 8.0},
        [("trouble", "These figures are 8.0 s old: the worker's process gets no time.")],
    ),
    (
        {"risks": frozenset({"memory"})},
        [
            ("notice", "Redis' memory is nearly full: soon it refuses new writes."),
            ("good", "Writes go in: nothing waits."),
        ],
    ),
    (
        {"risks": frozenset({"persistence", "eviction"}), "dead_letters": 1},
        [
            (
                "trouble",
                "What waits in Redis is in danger: when full it evicts the queue (maxmemory-policy).",
            ),
            ("trouble", "What waits in Redis is not on disk (appendonly is off): a restart would lose it."),
            ("notice", "1 dead letter is open (writebehind dead list)."),
            ("good", "Writes go in: nothing waits."),
        ],
    ),
]


@pytest.mark.parametrize(("facts", "expected"), CASES)
def test_the_sentences(facts: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert [(found.level, found.text) for found in findings(Situation(**WELL | facts))] == expected


@pytest.mark.parametrize("risk", ["eviction", "persistence", "write_error"])
def test_no_write_is_called_safe_in_a_redis_that_may_lose_it(risk: str) -> None:
    for facts in (
        {"postgres_up": False},
        {"paused": "x"},
        {"held": "x"},
        {"breaker": "x"},
        {"role": "stopping"},
    ):
        now = Situation(**WELL | {"backlog": waits(5)} | facts | {"risks": frozenset({risk})})
        assert not [found for found in findings(now) if "safe" in found.text or "well" in found.text]


def test_what_keeps_all_from_being_well_is_never_called_well() -> None:
    for facts, _ in CASES:
        now = Situation(**WELL | facts)
        is_well = findings(now)[0].level == "good"
        assert is_well == (findings(now) == [Finding("good", findings(now)[0].text)])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, UNKNOWN),
        (0, "0 s"),
        (0.0004, "0.4 ms"),
        (0.0015, "1.5 ms"),
        (0.03, "30 ms"),
        (0.0996, "100 ms"),
        (0.25, "0.25 s"),
        (1.24, "1.2 s"),
        (12.3, "12 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (86_400, "1 d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_other_quantities() -> None:
    assert [count(value) for value in (None, 0, 1203, 12.5)] == [UNKNOWN, "0", "1,203", "13"]
    assert [rate(value) for value in (None, 0, 0.26, 9.94, 10, 1234.5)] == [
        UNKNOWN,
        "0",
        "0.3",
        "9.9",
        "10",
        "1,235",
    ]
    assert [ratio(value) for value in (None, 1, 3.847)] == [UNKNOWN, "1.00", "3.85"]
