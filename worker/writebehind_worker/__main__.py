"""Entry point of `writebehind` and of `python -m writebehind_worker`."""

from __future__ import annotations

import sys

_EXTRA = {"click", "psycopg", "structlog", "prometheus_client", "rich"}


def main() -> None:
    """Runs the command line; without the extra `worker`, says how to install it and exits with 2."""
    try:
        from .cli import cli  # noqa: PLC0415 - its imports are what may be missing

        cli(prog_name="writebehind")  # imports the command's own
    except ImportError as error:
        # psycopg without libpq raises a bare ImportError from its own module.
        if error.name is not None and error.name.partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(
            f"writebehind: the command needs the extra `worker`: {error}\n"
            "Hint: pip install 'writebehind[worker]'\n"
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
