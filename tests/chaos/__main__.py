"""``python -m tests.chaos``: rounds of a minute, each from a seed of its own; see docs/chaos.md."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from writebehind_worker.embedded import temporary_data_dir

from .report import LiveLine, checked_line, last_line, violation_lines
from .round import Outcome, Plan, keep, play
from .sabotage import SABOTAGES
from .stage import Stage
from .topology import TOPOLOGIES

_ROUND_S = 60.0
_SABOTAGE_ROUND_S = 8.0
_SABOTAGE_ROUNDS = 7  # within a minute
_SABOTAGE_WRITES_PER_S = 2000
_SABOTAGE_DRAIN_S = 20.0  # a broken worker may hang as well


def main() -> int:
    """The exit code: 0 if nothing was found (by ``--sabotage``: if each broken rule was)."""
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # either ends all processes
        signal.signal(number, signal.default_int_handler)
    try:
        if arguments.sabotage:
            names = list(SABOTAGES) if arguments.sabotage == "all" else [arguments.sabotage]
            return _prove(names, arguments.seed)
        return _run(arguments)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long faults happen, in all rounds")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next has the next")
    parser.add_argument("--topology", choices=list(TOPOLOGIES), default="single", help="what Redis is")
    parser.add_argument("--shards", type=int, default=1, help="into how many the queue is divided at first")
    parser.add_argument("--rate", type=float, default=4500, help="writes offered per second")
    parser.add_argument("--keep", type=Path, help="keep everything in this new folder, found or not")
    parser.add_argument(
        "--sabotage", choices=["all", *SABOTAGES], help="break this rule, and succeed if that is found"
    )
    return parser.parse_args()


def _run(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.keep or temporary_data_dir()
    line = LiveLine()
    line.say(f"seed {arguments.seed}, {arguments.seconds:.0f} s; everything is in {folder}")
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    is_good = False
    try:
        with Stage(folder, arguments.rate, arguments.topology, arguments.shards) as stage:
            left, seed = arguments.seconds, arguments.seed
            while left > 0:
                plan = Plan(seed, min(left, _ROUND_S))
                history = folder / f"seed-{seed}"
                is_good = False  # until the round has ended well
                outcome = play(stage, plan, history, line)
                counts += outcome.verdict.counts + outcome.faults
                found += Counter(v.kind for v in outcome.verdict.violations)
                is_good = outcome.is_good
                _tell(line, plan, outcome)
                if not is_good:
                    keep(history, outcome, plan)
                    break
                left, seed = left - plan.seconds, seed + 1
                stage.clear()
                if arguments.keep is None:
                    shutil.rmtree(history)
    except KeyboardInterrupt:
        is_good = True  # stopped, not failed: there is nothing to keep
        raise
    finally:
        if is_good and arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if not is_good:
        again = f"SECONDS={plan.seconds:.0f} SEED={plan.seed} TOPOLOGY={arguments.topology}"
        again += f" SHARDS={arguments.shards}"
        line.say(f"kept in {folder}; again: make chaos {again}")
    line.say(last_line(counts, found))
    return 0 if is_good else 1


def _tell(line: LiveLine, plan: Plan, outcome: Outcome) -> None:
    line.say(f"seed {plan.seed}: {checked_line(outcome.verdict)}")
    for text in (*outcome.troubles, *violation_lines(outcome.verdict)):
        line.say(text)


def _prove(names: Sequence[str], seed: int) -> int:
    """Breaks one rule after the other, and looks whether the check says so."""
    folder = temporary_data_dir()
    missed = []
    try:
        with Stage(folder, _SABOTAGE_WRITES_PER_S) as stage:
            for name in names:
                if not _is_caught(stage, name, seed):
                    missed.append(name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"sabotage: {len(names)} rules broken, {len(names) - len(missed)} caught")
    return 1 if missed else 0


def _is_caught(stage: Stage, name: str, seed: int) -> bool:
    sabotage, line = SABOTAGES[name], LiveLine()
    shown: Counter[str] = Counter()
    rounds = 0
    stage.spoil(name)
    while rounds < _SABOTAGE_ROUNDS and not sabotage.shows & shown.keys():
        plan = Plan(seed + rounds, _SABOTAGE_ROUND_S, sabotage.faults, sabotage.hurry, _SABOTAGE_DRAIN_S)
        outcome = play(stage, plan, stage.folder / f"{name}-{rounds}", line)
        rounds += 1
        if outcome.is_drained:
            shown += Counter(v.kind for v in outcome.verdict.violations)
            stage.clear()
        else:  # what has not been applied yet proves nothing
            stage.spoil(name)
    is_caught = bool(sabotage.shows & shown.keys())
    told = ", ".join(f"{n} {kind}" for kind, n in shown.most_common()) or "nothing found"
    verdict = f"{'caught' if is_caught else 'NOT CAUGHT'} in {rounds * _SABOTAGE_ROUND_S:.0f} s"
    line.say(f"{name} (broken: {sabotage.breaks}): {verdict}: {told}")
    return is_caught


if __name__ == "__main__":
    sys.exit(main())
