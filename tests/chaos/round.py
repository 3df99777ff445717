"""One round: load and faults for a while, then quiet, then the check."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .checker import Verdict, check
from .faults import Faults
from .history import read_histories
from .report import LiveLine
from .schedule import schedule
from .snapshot import take_snapshot
from .stage import Stage

_LOOK_EVERY_S = 0.25
_FLUSHES = {"at once": '"at_once": true', "write by write": '"at_once": false'}


@dataclass(frozen=True)
class Plan:
    """``only`` these faults (``None``: all), ``hurry`` times as often."""

    seed: int
    seconds: float
    only: Collection[str] | None = None
    hurry: float = 1.0
    drain_timeout_s: float = 90.0


@dataclass(frozen=True)
class Outcome:
    """What a round has found; ``troubles`` are failures that no row shows, not being drained among them."""

    verdict: Verdict
    faults: Counter[str]
    troubles: list[str]
    is_drained: bool

    @property
    def is_good(self) -> bool:
        return not (self.verdict.violations or self.troubles)


def play(stage: Stage, plan: Plan, history: Path, line: LiveLine) -> Outcome:
    """Plays a round on a stage that is quiet, and leaves it quiet."""
    history.mkdir(parents=True, exist_ok=True)
    flushes = flushes_of(stage)
    faults = Faults(stage, schedule(plan.seed, plan.seconds, plan.only, plan.hurry, stage.lanes))
    stage.start_producers(plan.seed, history)
    faults.start()
    try:
        _watch(stage, plan, faults, line)
    finally:
        faults.stop()
    heal(stage)
    stage.end_producers()
    troubles = []
    is_drained = stage.is_drained(
        plan.drain_timeout_s, lambda: line.show(f"draining: {stage.pending()} left")
    )
    if not is_drained:
        troubles.append(
            f"{stage.pending()} writes were pending {plan.drain_timeout_s:.0f} s after the faults"
        )
    with stage.postgres() as pg, stage.entries() as entries:
        snapshot = take_snapshot(pg, entries)
    verdict = check(read_histories(history), snapshot)
    verdict.counts += flushes_of(stage) - flushes
    return Outcome(verdict, faults.done, troubles + crashes(stage), is_drained)


def _watch(stage: Stage, plan: Plan, faults: Faults, line: LiveLine) -> None:
    began = time.monotonic()
    while (passed := time.monotonic() - began) < plan.seconds and faults.failure is None:
        pending = stage.pending()
        line.show(
            f"seed {plan.seed}  {passed:4.0f} of {plan.seconds:.0f} s  {stage.accepted:,} writes  "
            f"{sum(faults.done.values())} faults  "
            f"{'Redis is away' if pending is None else f'{pending:,} pending'}"
        )
        time.sleep(min(_LOOK_EVERY_S, max(0.0, plan.seconds - passed)))


def heal(stage: Stage) -> None:
    """Everything up and answering, whatever the faults have left behind."""
    for link in stage.links.values():
        link.accept()
        link.resume()
        link.delay_s = 0.0
    stage.topology.heal()
    stage.postgres_server.start()
    with stage.redis() as client:
        client.config_set("maxmemory", 0)
    with stage.postgres() as pg:
        pg.execute("ALTER SYSTEM RESET default_transaction_read_only")
        pg.execute("SELECT pg_reload_conf()")
    for index, child in enumerate(stage.workers):
        child.send(signal.SIGCONT)
        if child.exit_code == -signal.SIGKILL:
            stage.workers[index] = stage.new_worker(index)
    if "moves" in stage.lanes:
        stage.end_move()


def flushes_of(stage: Stage) -> Counter[str]:
    """Transactions that took whole batches at once, and those that took one write by write."""
    logs = [log.read_text(errors="replace") for log in stage.folder.glob("*.log")]
    return Counter({name: sum(log.count(text) for log in logs) for name, text in _FLUSHES.items()})


def crashes(stage: Stage) -> list[str]:
    """Processes that ended by themselves, and exceptions that nobody caught."""
    found = []
    for index, child in enumerate(stage.workers):
        if child.exit_code is not None:
            found.append(f"worker {index} has ended by itself, with {child.exit_code}: see {child.log}")
    for log in sorted(stage.folder.glob("*.log")):
        if "Traceback (most recent call last)" in log.read_text(errors="replace"):
            found.append(f"an exception that nobody caught: see {log}")
    return found


def keep(history: Path, outcome: Outcome, plan: Plan) -> None:
    """Leaves beside the histories what has been found."""
    found = {
        "seed": plan.seed,
        "seconds": plan.seconds,
        "violations": [str(v) for v in outcome.verdict.violations],
        "troubles": outcome.troubles,
    }
    (history / "found.json").write_text(json.dumps(found, indent=1))
