"""A worker of a fleet for which no shard is left: it asks now and then whether it could serve one."""

from __future__ import annotations

import time

import psycopg

from . import postgres
from .config import Config, one_line, redacted
from .errors import LedgerRefused
from .ledger import Ledger
from .sqlstate import advice
from .state import WorkerState

_EVERY_S = 10.0


class Spare:
    """Tells the state of its process whether Postgres is there for it."""

    def __init__(self, config: Config, state: WorkerState) -> None:
        self._config, self._state = config, state
        self._look_at = 0.0

    def look(self) -> None:
        """Raises `FatalError` where the operator must act, as a worker that serves does."""
        if time.monotonic() < self._look_at and self._state.facts()["postgres_up"] is not None:
            return
        url = self._config.postgres_url
        try:
            with postgres.connect(url) as conn:
                postgres.check_version(conn, redacted(url))
                Ledger(conn, self._config.queue).check()
            self._state.postgres_is(True)
        except psycopg.Error as error:
            self._state.postgres_is(False, f"Postgres: {one_line(error)}; {advice(error)}")
        except LedgerRefused as error:
            self._state.postgres_is(False, str(error))
        self._look_at = time.monotonic() + _EVERY_S
