"""What can be found out of a batch before its transaction, while another batch is in Postgres. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .catalog import Catalog
from .execution import Statement, statements
from .frozen import FrozenBatch
from .resolve import MustAsk, Refusal, Write, never_ask, resolve


@dataclass(frozen=True, slots=True)
class Prepared:
    """Holds for as long as the worker believes in this ``catalog``."""

    catalog: Catalog
    writes: Sequence[Write]
    refusals: Sequence[Refusal]
    statements: Sequence[Statement]


def prepare(batch: FrozenBatch, catalog: Catalog) -> Prepared | None:
    """``None`` where only Postgres can tell which keys are equal."""
    try:
        writes, refusals = resolve(batch.messages, catalog, never_ask)
    except MustAsk:
        return None
    return Prepared(catalog, writes, refusals, list(statements(writes)) if writes else ())
