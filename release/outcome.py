"""What was checked, how it ended, and the table of all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Failed(Exception):
    """A check found something; the text says what and where."""


class NotRun(Exception):
    """A check could not be made here; the text says why. That is no failure."""


@dataclass(frozen=True)
class Outcome:
    """``result`` is ok, FAILED or not run; ``note`` what was found, or why."""

    check: str
    result: str
    note: str
    seconds: float


@dataclass
class Outcomes:
    """All checks of a run. Each says on a line what it does, and at its end how it went."""

    of: list[Outcome] = field(default_factory=list)

    def check(self, name: str, work: Callable[[], str]) -> bool:
        """Runs one; ``work`` returns a note, or raises `Failed` or `NotRun`. Whether it was not a failure."""
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        try:
            result, note = "ok", work()
        except Failed as error:
            result, note = "FAILED", str(error)
        except NotRun as error:
            result, note = "not run", str(error)
        self.of.append(Outcome(name, result, note, time.monotonic() - started))
        print(f"    {result}: {note}" if note else f"    {result}", flush=True)
        return result != "FAILED"

    @property
    def is_good(self) -> bool:
        """Nothing failed."""
        return all(outcome.result != "FAILED" for outcome in self.of)

    def table(self) -> str:
        """A line for each, aligned; of a note its first line."""
        rows = [("check", "result", "s", "")]
        rows += [(o.check, o.result, f"{o.seconds:.1f}", o.note.partition("\n")[0]) for o in self.of]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {result:<{widths[1]}}  {seconds:>{widths[2]}}  {note}".rstrip()
            for name, result, seconds, note in rows
        )
