"""The ledger: one row a queue in Postgres, updated in the transaction of each batch.

It gives out the epochs, fences whoever is not the owner, and tells which batches have been committed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
from psycopg import errors as pg_errors

from .errors import LedgerMissing, LedgerOutdated, LedgerRefused, OwnershipLost
from .history import LedgerRow
from .ledger_schema import SCHEMA_VERSION, check_not_newer
from .postgres import DURABLE, is_pooled
from .resolve import Refusal
from .sqlstate import Verdict, judge
from .table import quoted

RECENT = 64
"""How many batch ids the ledger remembers; far more than can be in flight."""

MOST_HISTORY = 20
"""Earlier rejections that a dead letter tells: the first one, and the last ones."""

_COLUMNS = "epoch, recent_batches, applied_seq, generations, redis_run_id, rollback_seq, rollback_items"
# Bounds the wait for the row's lock, by one statement: it needs no transaction of ours around it.
_BOUNDED = f"FROM (SELECT set_config('lock_timeout', '1s', true), {DURABLE}) AS bounded"
# Behind a pooler each of an owner's transactions can be another backend's: the lock tells which one it is in.
_OWNERS_LOCK = int.from_bytes(b"wbhd")
_MARKED = f"FROM (SELECT pg_try_advisory_xact_lock_shared({_OWNERS_LOCK}, hashtext($1))) AS marked "

# Rights on single columns suffice, as they do for the statements. The queue's row, once it is there, stays.
_MISSING_RIGHTS = """
SELECT array_agg(format('%s ON writebehind.%s', privilege, name))
FROM unnest('{ledger,dead_letters,dead_letters,dead_letters,dead_letters}'::text[],
            '{INSERT,SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needed(name, privilege)
WHERE NOT CASE privilege WHEN 'DELETE' THEN has_table_privilege('writebehind.' || name, privilege)
          ELSE has_any_column_privilege('writebehind.' || name, privilege) END
  AND NOT (name = 'ledger' AND EXISTS (SELECT FROM writebehind.ledger WHERE queue = $1))
"""


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter of a batch, as far as Redis must hear of it. ``kind``: rejected or rollback."""

    position: int
    kind: str
    sqlstate: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """A row that a batch has written: which older dead letters that supersedes.

    ``position`` is that of the last write to it that was no retry, -1 if there was none; ``letter`` the
    newest dead letter of it that was retried, 0 if there was none.
    """

    table: str
    key: str
    position: int = -1
    letter: int = 0


class AlreadyApplied(Exception):
    """The ledger has the batch: a COMMIT whose reply was lost, or another owner's."""


_QUEUES_WITH_LETTERS = """
WITH RECURSIVE found(queue) AS (
    SELECT min(queue) FROM writebehind.dead_letters
    UNION ALL
    SELECT (SELECT min(d.queue) FROM writebehind.dead_letters d WHERE d.queue > found.queue)
    FROM found WHERE found.queue IS NOT NULL
)
SELECT queue FROM found WHERE queue IS NOT NULL
"""  # one look at the index for each; DISTINCT would read all letters
OF_WHOLE = (
    f"ARRAY(SELECT queue FROM ({_QUEUES_WITH_LETTERS}) AS q WHERE queue = $1::text "
    "OR starts_with(queue, $1::text || ':') AND queue ~ ':[1-9][0-9]{0,3}of[1-9][0-9]{0,3}$')"
)
"""The queue $1 and its shards, former ones too, as far as they have dead letters."""
OPEN_BESIDE = f"queue = ANY ({OF_WHOLE}) AND queue <> ALL ($2::text[]) AND superseded_at IS NULL"
"""Open dead letters of the queue $1 and its shards, but for the shards $2."""

_WRITTEN = "unnest($3::text[], $4::text[], $5::int[], $6::bigint[]) AS w(table_name, key, position, letter)"
_IS_OLDER = (
    f"d.queue = ANY ({OF_WHOLE}) AND d.superseded_at IS NULL AND (d.id < w.letter OR w.position >= 0 AND "
    "(d.queue <> $7 OR d.batch <> $2 OR d.retried_at IS NOT NULL OR d.position < w.position))"
)
_SUPERSEDE = (
    f"UPDATE writebehind.dead_letters d SET superseded_at = now() FROM {_WRITTEN} "
    f"WHERE d.table_name = w.table_name AND d.key = w.key AND {_IS_OLDER}"
)
# Of a group one row is enough: sent again, it would undo that newer write with the others.
_SUPERSEDE_GROUPS = (
    f"UPDATE writebehind.dead_letters d SET superseded_at = now() WHERE d.group_rows IS NOT NULL "
    f"AND d.superseded_at IS NULL AND d.queue = ANY ({OF_WHOLE}) "
    f"AND EXISTS (SELECT FROM jsonb_array_elements(d.group_rows) AS r JOIN {_WRITTEN} "
    f"ON r ->> 0 = w.table_name AND r ->> 1 = w.key WHERE {_IS_OLDER})"
)


class Ledger:
    """The row of ``queue``, over the owner's connection (autocommit; the caller begins transactions).

    ``whole``: the queue that it is a shard of. Where that ``is_divided``, or was, dead letters of its rows
    can be of any shard, former ones too.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        queue: str,
        whole: str | None = None,
        *,
        is_divided: bool = False,
    ) -> None:
        self._conn, self._queue, self._whole = conn, queue, whole or queue
        self.is_divided = is_divided

    def check(self) -> None:
        """Raises `LedgerMissing`, `LedgerOutdated`, `NewerVersion` or `LedgerRefused` if they cannot be used.

        ``psycopg.errors.ReadOnlySqlTransaction``: the server is a standby.
        """
        with self._guarded():
            self._conn.execute("SELECT FROM writebehind.ledger LIMIT 0 FOR UPDATE")
            self._check_version()
            self._conn.execute("SELECT retried_at, history, group_rows FROM writebehind.dead_letters LIMIT 0")
            row = self._conn.execute(_MISSING_RIGHTS, [self._queue]).fetchone()
        if row is not None and row[0]:
            # Else only the first bad write, or retry, would tell, and hold the queue.
            role = self._conn.info.user
            raise LedgerRefused(
                f"the role {role!r} may not {', '.join(row[0])}",
                "; ".join(f"GRANT {right} TO {quoted(role)}" for right in row[0]),
            )

    def _check_version(self) -> None:
        try:
            version = check_not_newer(self._conn)
        except pg_errors.UndefinedTable:
            version = 0
        if version < SCHEMA_VERSION:
            raise LedgerOutdated(self._conn.info.dbname)

    def take(self, owner: str, epoch_floor: int) -> LedgerRow:
        """Makes us the owner under a new epoch, higher than any before and than ``epoch_floor``.

        A former owner that is stalled inside its transaction holds the row: its backend is ended. Its batch
        is still frozen in Redis, and is flushed by us.
        """
        with self._guarded():
            # Only where it is missing: ON CONFLICT would wait for whoever is updating the row, without bound.
            self._conn.execute(
                "INSERT INTO writebehind.ledger (queue) SELECT $1 WHERE NOT EXISTS "
                "(SELECT FROM writebehind.ledger WHERE queue = $1) ON CONFLICT DO NOTHING",
                [self._queue],
            )
            try:
                return self._raise_epoch(owner, epoch_floor)
            except pg_errors.LockNotAvailable:
                self._end_stalled_owner()
                return self._raise_epoch(owner, epoch_floor)

    def _raise_epoch(self, owner: str, epoch_floor: int) -> LedgerRow:
        # One statement, and no transaction of ours around it: paused here, we leave the row unlocked, and so
        # whoever holds it is the owner that the row names.
        backend = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        if is_pooled(self._conn):
            backend = "SELECT NULL::integer, NULL::timestamptz"  # it will be anybody's
        row = self._conn.execute(
            "UPDATE writebehind.ledger SET epoch = greatest(epoch, $2) + 1, owner = $3, "
            f"(owner_pid, owner_backend_start) = ({backend}), "
            "updated_at = now(), waiting_for = NULL "
            f"{_BOUNDED} WHERE queue = $1 RETURNING {_COLUMNS}",
            [self._queue, epoch_floor, owner],
        ).fetchone()
        assert row is not None
        return LedgerRow(*row)

    def _end_stalled_owner(self) -> None:
        # The start time tells its backend from a later one that was given the same pid.
        self._conn.execute(
            "SELECT pg_terminate_backend(l.owner_pid) FROM writebehind.ledger l JOIN pg_stat_activity a "
            "ON a.pid = l.owner_pid AND a.backend_start = l.owner_backend_start WHERE l.queue = $1",
            [self._queue],
        )
        self._conn.execute(
            "SELECT pg_terminate_backend(a.pid) FROM pg_locks k JOIN pg_stat_activity a USING (pid) "
            f"WHERE k.locktype = 'advisory' AND k.objsubid = 2 AND k.classid = {_OWNERS_LOCK} "
            "AND k.objid = hashtext($1)::oid AND k.granted AND a.datname = current_database() "
            "AND k.database = a.datid AND a.usename = current_user AND a.pid <> pg_backend_pid()",
            [self._queue],
        )

    def adopt(
        self,
        epoch: int,
        generations: Sequence[int],
        run_id: str | None,
        rollback_seq: int,
        rollback_items: int,
    ) -> None:
        """Records the Redis histories that we have found and, last, that we serve from now on.

        Before anything is claimed: whatever Redis comes back with, it is known whether it has been served.
        """
        with self._guarded():
            done = self._conn.execute(
                "UPDATE writebehind.ledger SET generations = "
                "(array(SELECT g FROM unnest(generations) WITH ORDINALITY AS u(g, n) "
                "WHERE g <> ALL ($3::bigint[]) ORDER BY n) || $3::bigint[])"
                f"[greatest(1, cardinality(generations) - {RECENT - 3}):], redis_run_id = $4, "
                "rollback_seq = $5, rollback_items = $6, updated_at = now() "
                f"{_BOUNDED} WHERE queue = $1 AND epoch = $2",
                [self._queue, epoch, list(generations), run_id, rollback_seq, rollback_items],
            ).rowcount
        if not done:
            raise OwnershipLost("another worker has raised the epoch in the ledger")

    def record(
        self,
        epoch: int,
        batches: Sequence[int],
        applied_seq: int,
        rollback_items: int,
        *,
        is_of_trip: bool = False,
    ) -> None:
        """First statement of the transaction of one or more batches: it holds the row until the end of it.

        ``is_of_trip``: within `one_trip` the server itself refuses what would be raised, by a psycopg.Error.
        What comes after is on its way then, and would lock rows that are another owner's to write.

        Raises:
            AlreadyApplied: one of the batches has been committed before.
            OwnershipLost: another worker has raised the epoch.
        """
        marked = _MARKED if is_pooled(self._conn) else ""
        recorded = (
            "UPDATE writebehind.ledger SET recent_batches = (recent_batches || $3::bigint[])"
            f"[greatest(1, cardinality(recent_batches) + cardinality($3::bigint[]) - {RECENT - 1}):], "
            "applied_seq = greatest(applied_seq, $4), rollback_items = $5, updated_at = now() "
            f"{marked}WHERE queue = $1 AND epoch = $2 AND NOT $3::bigint[] && recent_batches"
        )
        values = [self._queue, epoch, list(batches), applied_seq, rollback_items]
        if is_of_trip:
            recorded = f"WITH recorded AS ({recorded} RETURNING 1) SELECT 1 / count(*) FROM recorded"
            self._conn.execute(recorded, values)
            return
        with self._guarded():
            if self._conn.execute(recorded, values).rowcount:
                return
            found = self._conn.execute(
                "SELECT epoch = $2, $3::bigint[] && recent_batches FROM writebehind.ledger WHERE queue = $1",
                [self._queue, epoch, list(batches)],
            ).fetchone()
        if found is not None and found[0] and found[1]:
            raise AlreadyApplied(batches)
        raise OwnershipLost("another worker has raised the epoch in the ledger")

    def say_waiting(self, epoch: int, reason: str | None) -> None:
        """Tells `writebehind status` what the oldest batch waits for; outside of its transaction."""
        with self._guarded():
            self._conn.execute(
                f"UPDATE writebehind.ledger SET waiting_for = $3 {_BOUNDED} WHERE queue = $1 AND epoch = $2",
                [self._queue, epoch, reason],
            )

    def bury(self, batch: int, refusals: Sequence[Refusal], kind: str) -> None:
        """Writes dead letters, in the transaction of their batch; their ids get the order of the list."""
        refusals = sorted(refusals, key=lambda r: r.message.position)
        with self._guarded():
            self._conn.execute(
                "INSERT INTO writebehind.dead_letters (queue, batch, kind, position, seq, body, table_name, "
                "key, cache_key, sqlstate, reason, group_rows) SELECT $1, $2, $3, * FROM unnest($4::int[], "
                "$5::bigint[], $6::bytea[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], "
                "$12::jsonb[])",
                [self._queue, batch, kind, *_columns(refusals)],
            )

    def retriable(self, letters: Sequence[int]) -> dict[int, bool]:
        """Those of these dead letters that are there, locked; False: a retry must be forced.

        One that somebody else has locked, to drop it perhaps, is not waited for: it is not there for us.
        """
        with self._guarded():
            rows = self._conn.execute(
                "SELECT id, superseded_at IS NULL AND kind = 'rejected' FROM writebehind.dead_letters "
                f"WHERE queue = ANY ({OF_WHOLE}) AND id = ANY ($2::bigint[]) FOR UPDATE SKIP LOCKED",
                [self._whole, letters],
            ).fetchall()
        return dict(rows)

    def bury_again(self, batch: int, refusals: Sequence[Refusal]) -> None:
        """Retried writes that were rejected again: each stays the dead letter that it was, with its history.

        One that was superseded or applied before a rollback stays so, too.
        """
        with self._guarded():
            self._conn.execute(
                "UPDATE writebehind.dead_letters d "
                "SET queue = $13, batch = $2, position = w.position, seq = w.seq, "
                "body = w.body, table_name = w.table_name, key = w.key, cache_key = w.cache_key, "
                "group_rows = w.group_rows, "
                "sqlstate = w.sqlstate, reason = w.reason, retried_at = now(), history = "
                f"CASE WHEN jsonb_array_length(d.history) < {MOST_HISTORY} THEN d.history "
                "ELSE d.history - 1 END || jsonb_build_object('at', coalesce(d.retried_at, d.created_at), "
                "'batch', d.batch, 'sqlstate', d.sqlstate, 'reason', d.reason) "
                "FROM unnest($3::bigint[], $4::int[], $5::bigint[], $6::bytea[], $7::text[], $8::text[], "
                "$9::text[], $10::text[], $11::text[], $12::jsonb[]) AS w(id, position, seq, body, "
                "table_name, key, cache_key, sqlstate, reason, group_rows) "
                f"WHERE d.queue = ANY ({OF_WHOLE}) AND d.id = w.id",
                [
                    self._whole,
                    batch,
                    [r.message.retry for r in refusals],
                    *_columns(refusals),
                    self._queue,
                ],
            )

    def remove(self, letters: Sequence[int]) -> None:
        """Dead letters whose retry has been applied."""
        with self._guarded():
            self._conn.execute(
                "DELETE FROM writebehind.dead_letters "
                f"WHERE queue = ANY ({OF_WHOLE}) AND id = ANY ($2::bigint[])",
                [self._whole, letters],
            )

    def buried(self, batch: int) -> list[Buried]:
        """The dead letters of a batch that has been committed."""
        with self._guarded():
            rows = self._conn.execute(
                "SELECT position, kind, sqlstate, reason FROM writebehind.dead_letters "
                "WHERE queue = $1 AND batch = $2 ORDER BY position",
                [self._queue, batch],
            ).fetchall()
        return [Buried(*row) for row in rows]

    def last_batch(self) -> int:
        """Id of the last batch committed."""
        with self._guarded():
            found = self._conn.execute(
                "SELECT recent_batches[cardinality(recent_batches)] FROM writebehind.ledger WHERE queue = $1",
                [self._queue],
            ).fetchone()
        assert found is not None
        return int(found[0] or 0)

    def tables_of_shards(self) -> set[str]:
        """Tables of which any shard has dead letters that no later write has superseded."""
        with self._guarded():
            rows = self._conn.execute(
                "SELECT DISTINCT table_name FROM writebehind.dead_letters "
                f"WHERE queue = ANY ({OF_WHOLE}) AND superseded_at IS NULL AND table_name IS NOT NULL",
                [self._whole],
            ).fetchall()
        return {table for (table,) in rows} | self.tables_of_groups()

    def tables_of_groups(self) -> set[str]:
        """Tables of the rows of groups, of any shard, that are dead letters and not superseded."""
        with self._guarded():
            rows = self._conn.execute(
                "SELECT DISTINCT r ->> 0 FROM writebehind.dead_letters, jsonb_array_elements(group_rows) r "
                f"WHERE queue = ANY ({OF_WHOLE}) AND superseded_at IS NULL AND group_rows IS NOT NULL",
                [self._whole],
            ).fetchall()
        return {table for (table,) in rows}

    def open_dead_letters(self, present: Collection[str] = ()) -> dict[tuple[str | None, str | None], int]:
        """How many no later write has superseded, by (``schema.table`` or ``None``, SQLSTATE).

        Those of former shards are the queue's own: nobody else would tell of them. ``present``: shards that
        have an owner who does.
        """
        with self._guarded():
            rows = self._conn.execute(
                "SELECT table_name, sqlstate, count(*) FROM writebehind.dead_letters "
                f"WHERE {OPEN_BESIDE} GROUP BY table_name, sqlstate",
                [self._queue, [queue for queue in present if queue != self._queue]],
            ).fetchall()
        return {(table, sqlstate): count for table, sqlstate, count in rows}

    def supersede(self, batch: int, written: Sequence[WrittenRow]) -> None:
        """Marks the dead letters of these rows that are older than what has been written.

        A write is newer than all of former batches; a retried one is as old as the letter that it retries,
        and older than every other write of the batch that rejects it again.
        """
        values: list[Any] = [
            self._whole,
            batch,
            [w.table for w in written],
            [w.key for w in written],
            [w.position for w in written],
            [w.letter for w in written],
            self._queue,
        ]
        with self._guarded():
            self._conn.execute(_SUPERSEDE, values)
            self._conn.execute(_SUPERSEDE_GROUPS, values)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever our own tables are refused for is no fault of a write."""
        try:
            yield
        except (pg_errors.UndefinedTable, pg_errors.InvalidSchemaName) as error:
            raise LedgerMissing(self._conn.info.dbname) from error
        except pg_errors.UndefinedColumn as error:
            raise LedgerOutdated(self._conn.info.dbname) from error
        except psycopg.Error as error:
            if judge(error) is not Verdict.ROW:
                raise
            raise LedgerRefused(
                f"Postgres refuses the ledger: {error.diag.message_primary or error} "
                f"(SQLSTATE {error.sqlstate})",
                self._remedy(error),
            ) from error

    def _remedy(self, error: psycopg.Error) -> str:
        if isinstance(error, pg_errors.InsufficientPrivilege):
            role = self._conn.info.user
            return (
                f'GRANT USAGE ON SCHEMA writebehind TO "{role}"; '
                f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA writebehind TO "{role}"'
            )
        return "run `writebehind init`: the tables may be of another version"


def _columns(refusals: Sequence[Refusal]) -> list[list[Any]]:
    """What a dead letter says of its write, a list for each column: from position to reason."""
    return [
        [r.message.position for r in refusals],
        [r.message.seq for r in refusals],
        [r.message.body for r in refusals],
        [_text(r.table.full_name if r.table else r.message.table) for r in refusals],
        [r.key_text for r in refusals],
        [_text(r.message.cache_key) for r in refusals],
        [r.fault.sqlstate for r in refusals],
        [_text(r.fault.reason) for r in refusals],
        [_group_rows(r) for r in refusals],
    ]


def _group_rows(refusal: Refusal) -> str | None:
    """The rows of a group as a JSON array of [table, key]."""
    if not refusal.rows:
        return None
    return msgspec.json.encode([[_text(table), _text(key)] for table, key in refusal.rows]).decode()


def _text(value: str | None) -> str | None:
    """Postgres' text has no NUL."""
    return None if value is None else value.replace("\0", "\\0")
