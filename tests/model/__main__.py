"""`make model`: searches every instance, and shows for each rule left out the shortest way to a violation."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time

from .instances import HOLDING, LEFT_OUT, run
from .search import Found


def main() -> int:
    """Exit code 1 if a promise is broken where none may be, or kept where a rule is left out."""
    began, states, failures = time.monotonic(), 0, 0
    with multiprocessing.Pool(initializer=_lower) as pool:
        print("Every promise holds in", flush=True)
        for instance, found in zip(HOLDING, pool.imap(run, HOLDING), strict=True):
            states += found.states
            failures += found.violation is not None
            verdict = "no violation" if found.violation is None else f"VIOLATION: {found.violation}"
            print(f"  {instance.name:<72} {found.states:>9,} states  {verdict}", flush=True)
            _print_trace(found)
        print("\nWith a rule left out, in as few steps as possible", flush=True)
        for left, found in zip(LEFT_OUT, pool.imap(run, [left.instance for left in LEFT_OUT]), strict=True):
            states += found.states
            failures += not (found.violation or "").startswith(left.violation)
            print(f"\n  without {', '.join(left.rules)}: {found.violation or 'NO VIOLATION'}", flush=True)
            _print_trace(found)
    print(
        f"\nmodel: {states:,} states in {len(HOLDING) + len(LEFT_OUT)} instances, "
        f"{time.monotonic() - began:.0f} s: {failures} surprises"
    )
    return 1 if failures else 0


def _print_trace(found: Found) -> None:
    for number, step in enumerate(found.trace, start=1):
        print(f"    {number:>2}  {step}")


def _lower() -> None:
    """Ctrl-C ends the pool from the parent alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
