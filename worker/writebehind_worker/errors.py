"""Everything the worker raises.

WorkerError
 ├─ FatalError          the operator has to change something; the process ends with code 2
 │   ├─ ConfigError     an option is wrong
 │   ├─ LedgerMissing   the ledger's tables are not in the database
 │   ├─ LedgerOutdated  they are those of an earlier version
 │   ├─ NewerVersion    a message, the ledger or the keys in Redis are of a later version
 │   ├─ UnsafeRedis     Redis may evict the queue
 │   ├─ UnsupportedRedis  it is too old
 │   ├─ ClusteredRedis  it is a node of a cluster, and the URL does not say so
 │   └─ UnsupportedPostgres  it is too old
 ├─ OwnershipLost       Redis or Postgres says that the queue is not ours (any more): begin again
 ├─ LedgerRefused       Postgres refuses the ledger itself: wait, and say what to grant or fix
 ├─ HeldByLock          one write waits for a lock that somebody else holds: wait, and name it
 └─ BreakerTripped      every write to a table is refused alike: wait until it is mended
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .resolve import RowId


class WorkerError(Exception):
    """Base class of all errors of the worker."""


class FatalError(WorkerError):
    """Waiting or retrying cannot help. ``hint`` says what the operator should do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(FatalError):
    """An option has a value that is not allowed, or the file names an option that does not exist."""


class LedgerMissing(FatalError):
    """The tables of `schema.sql` are missing in ``database``."""

    def __init__(self, database: str) -> None:
        super().__init__(
            f"the ledger's tables are missing in the database {database!r}",
            "run `writebehind init` with the same --postgres-url",
        )


class LedgerOutdated(FatalError):
    """The tables of `schema.sql` in ``database`` were made by an earlier version."""

    def __init__(self, database: str) -> None:
        super().__init__(
            f"the ledger's tables in the database {database!r} are those of an earlier version",
            "run `writebehind init` with the same --postgres-url: it adds what is missing",
        )


class NewerVersion(FatalError):
    """``what`` was written by a later version: to go on could damage it. Nothing of it has been touched."""

    def __init__(self, what: str, version: int, known: int, hint: str = "") -> None:
        super().__init__(
            f"{what} version {version}, and this writebehind knows {known} at most",
            "upgrade writebehind on this host" + (f"; {hint}" if hint else ""),
        )


class UnsafeRedis(FatalError):
    """Redis evicts keys that have no TTL, the queue among them: accepted writes would vanish."""

    def __init__(self, policy: str, where: str) -> None:
        super().__init__(
            f"Redis at {where} has maxmemory-policy {policy}: when full it evicts the queue itself",
            "set maxmemory-policy to noeviction or volatile-ttl, "
            "or accept the loss of writes with --allow-eviction",
        )


class UnsupportedRedis(FatalError):
    """The scripts need Redis 7: only there can they be told to run when it is full."""

    def __init__(self, where: str, version: str) -> None:
        super().__init__(
            f"Redis at {where} is {version}; writebehind needs 7.0 or later, or Valkey", "upgrade Redis"
        )


class ClusteredRedis(FatalError):
    """A node of a cluster has some of the slots, and does not say for how long."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"Redis at {where} is a node of a Redis Cluster, and the URL is that of one server",
            "name some of its nodes: redis+cluster://host:port,host:port (rediss+cluster:// with TLS)",
        )


class UnsupportedPostgres(FatalError):
    """The catalog is read by what PostgreSQL 12 brought."""

    def __init__(self, where: str, version: str) -> None:
        super().__init__(
            f"Postgres at {where} is {version}; writebehind needs 12 or later", "upgrade PostgreSQL"
        )


class OwnershipLost(WorkerError):
    """The lease, the epoch or the frozen batches are not what we believe: read both servers again."""


class LedgerRefused(WorkerError):
    """A statement on the worker's own tables was refused: a right or a column is missing."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


class HeldByLock(WorkerError):
    """``write`` describes, without its values, the first that waits; ``rows`` are all rows found waiting."""

    def __init__(self, write: str, rows: Collection[RowId], reason: str) -> None:
        others = f" (and {len(rows) - 1} rows more)" if len(rows) > 1 else ""
        super().__init__(f"{write}{others} waits for a lock, or takes too long: {reason}")
        self.write, self.rows = write, rows


class BreakerTripped(WorkerError):
    """Nothing was committed; the batch is tried again until it passes."""
