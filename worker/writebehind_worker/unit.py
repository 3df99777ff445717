"""Frozen batches that go to Postgres in one transaction. No I/O."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from .bulk_rows import bulk_statements
from .change_messages import change_messages
from .digest import Digest
from .execution import Statement
from .frozen import FrozenBatch
from .prepared import Prepared
from .settle import Seqs, Settlement, settlements

_PAYS_FROM = 1.5  # writes a row, from which it is better to wait for more of them


@dataclass(slots=True)
class Unit:
    """Consecutive batches, oldest first: one, or where all are in ``digest`` several.

    ``prepared`` is what is known of a batch that has no digest; ``statements`` what the digest comes to, if
    that has been found out before its transaction; ``changes`` what others must hear, if they are told.
    ``since``: when it began to wait for Postgres, by the monotonic clock.
    """

    batches: list[FrozenBatch]
    digest: Digest | None = None
    prepared: Prepared | None = None
    statements: Sequence[Statement] = ()
    changes: Sequence[bytes] = ()
    since: float = 0.0
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = sum(batch.size_bytes for batch in self.batches)

    @property
    def ids(self) -> list[int]:
        """Of its batches."""
        return [batch.id for batch in self.batches]

    @property
    def writes(self) -> int:
        """Messages in it."""
        return sum(len(batch.items) for batch in self.batches)

    @property
    def seqs(self) -> Sequence[int]:
        """Of the messages that have one, ascending."""
        if self.digest is not None:
            return self.digest.seqs
        return sorted(m.seq for batch in self.batches for m in batch.messages if m.seq is not None)

    @property
    def applied_seq(self) -> int:
        """The highest seq in it; 0 if none has one."""
        return self.seqs[-1] if self.seqs else 0

    def settlements(self, buried: Container[int]) -> Sequence[Settlement]:
        """What the cache must hear; ``buried`` holds the positions of the dead letters of its one batch."""
        if self.digest is not None:
            return self.digest.settlements
        return settlements(self.batches[0].messages, buried)

    @property
    def latest(self) -> Seqs:
        """The last message to each cache entry; empty where it is not at hand."""
        return {} if self.digest is None else self.digest.latest.seqs

    @property
    def rows(self) -> int:
        """To be written, at most."""
        return self.writes if self.digest is None else self.digest.size

    @property
    def pays(self) -> bool:
        """Whether its rows get several writes each, so that more batches add few rows to it."""
        return self.digest is not None and self.writes >= self.rows * _PAYS_FROM

    def close(self, copies: bool) -> None:
        """Nothing will be added: what it comes to is found out. ``copies``: rows may go by COPY."""
        if self.digest is not None:
            self.statements = bulk_statements(self.digest, copies=copies)
            self.digest.close()

    def read_changes(self) -> None:
        """Finds out what others must hear of it; before it lands."""
        self.changes = change_messages(item for batch in self.batches for item in batch.items)

    def land(self) -> None:
        """It is in Postgres: lets go of all but what Redis must still hear of it."""
        if self.digest is not None:
            self.digest.land()
            self.statements = ()
            for batch in self.batches:
                batch.items = ()

    def add(self, later: Unit) -> bool:
        """Takes in the next one, if both can go at once."""
        if self.digest is None or later.digest is None or not self.digest.add(later.digest):
            return False
        self.batches += later.batches
        self.size_bytes += later.size_bytes
        return True

    def split(self) -> Sequence[Unit]:
        """Each batch by itself, to be read message by message."""
        return [Unit([batch]) for batch in self.batches]
