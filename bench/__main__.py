"""``python -m bench``: measures the parts that are asked for, prints the tables, writes the figures down."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from .errors import BenchFailed
from .live import LiveLine
from .parts import FULL_ONLY, PARTS
from .report import tables, write_document
from .results import Results
from .sizes import DEFAULT, FULL, QUICK
from .stage import Stage

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ROOT = Path(__file__).parents[1]
_SIZES = {"default": DEFAULT, "full": FULL, "quick": QUICK}


def main() -> int:
    """The exit code: 0 if all was measured, however slow."""
    arguments = _arguments()
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the parts that were measured are kept", file=sys.stderr)
        return 130
    except BenchFailed as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _stop(*_: object) -> None:
    """Ends all processes and removes what they have left; a second signal must not cut that short."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"parts, comma-separated, of: {', '.join(PARTS)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_const", const="full", dest="size", help="takes much longer")
    size.add_argument(
        "--quick", action="store_const", const="quick", dest="size", help="figures mean nothing"
    )
    parser.add_argument("--json", type=Path, help="where figures go (bench/latest.json)")
    parser.add_argument("--docs", type=Path, help="folder of benchmarks.md (docs)")
    parser.set_defaults(size="default")
    arguments = parser.parse_args()
    own = _ROOT / "build/bench" if arguments.size == "quick" else None  # nobody shall read such figures
    arguments.json = arguments.json or (own or _ROOT / "bench") / "latest.json"
    arguments.docs = arguments.docs or own or _ROOT / "docs"
    chosen = arguments.only.split(",") if arguments.only else _all(arguments.size)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"--only {','.join(unknown)}: there is no such part; there are {', '.join(PARTS)}")
    arguments.parts = chosen
    return arguments


def _all(size: str) -> list[str]:
    return [name for name in PARTS if size == "full" or name not in FULL_ONLY]


def _run(arguments: argparse.Namespace) -> int:
    line = LiveLine()
    sizes = _SIZES[arguments.size]
    with Stage(sizes.wal_segments) as stage:
        results = Results(arguments.json, stage.machine(), arguments.size)
        for name in arguments.parts:
            began = time.monotonic()
            figures = PARTS[name](stage, sizes, line)
            results.add(name, figures, time.monotonic() - began)
    line.clear()
    for title, text in tables(results.found):
        print(f"{title}\n{text}\n")
    write_document(results.found, arguments.docs)
    print(f"The figures are in {arguments.json}, the page is {arguments.docs / 'benchmarks.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
