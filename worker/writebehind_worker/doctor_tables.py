"""What `writebehind doctor` finds in the tables: rights, keys, and what changes or refuses a write."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from .doctor import Finding, names
from .table import Table


class Policy(msgspec.Struct):
    """One policy that is for the role. ``command`` as in pg_policy: r, a, w, d, or * for all."""

    command: str
    permissive: bool
    using: str | None
    check: str | None


class TableFacts(msgspec.Struct):
    """What `sql/doctor_tables.sql` tells of a table, as the role sees it."""

    oid: int
    usage: bool
    select: bool
    insert: bool
    update: bool
    delete: bool
    unlogged: bool
    is_partition: bool
    partition_key: str | None
    takes_any: bool
    children: int
    keyed_children: int
    key_invalid: bool
    key_deferrable: bool
    triggers: list[str]
    partition_triggers: list[str]
    rules: list[str]
    row_security: bool
    policies: list[Policy]
    sequences: list[str]

    @property
    def is_written(self) -> bool:
        """Whether the role may write to it at all."""
        return self.usage and (self.insert or self.update or self.delete)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Rights without which puts, patches and increments are refused."""
        return tuple(right for right in ("select", "insert", "update") if not getattr(self, right))

    @property
    def closed(self) -> list[str]:
        """The letters of the commands that row-level security refuses, or shows no row to, altogether."""
        return [c for c in "rawd" if not any(p.permissive for p in self._policies(c))]

    @property
    def is_selective(self) -> bool:
        """Whether row-level security looks at the row."""
        return any(not self._is_open(command) for command in "rawd")

    def _policies(self, command: str) -> list[Policy]:
        return [policy for policy in self.policies if policy.command in (command, "*")]

    def _is_open(self, command: str) -> bool:
        found = self._policies(command)
        passing = [all(text in (None, "true") for text in (p.using, p.check)) for p in found]
        return any(p.permissive and ok for p, ok in zip(found, passing, strict=True)) and all(
            p.permissive or ok for p, ok in zip(found, passing, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Written:
    """A table that the worker may be asked to write to."""

    table: Table
    facts: TableFacts

    @property
    def name(self) -> str:
        return self.table.full_name


def choose(
    tables: Collection[Table], facts: Collection[TableFacts], named: Collection[int] | None
) -> list[Written]:
    """Those that ``--table`` names (oids), or all that the role may write to, without their partitions."""
    by_oid = {f.oid: f for f in facts}
    pairs = [Written(table, by_oid[table.oid]) for table in tables if table.oid in by_oid]
    if named is not None:
        return [w for w in pairs if w.table.oid in named]
    return [w for w in pairs if w.facts.is_written and not w.facts.is_partition]


def table_findings(
    written: Sequence[Written], role: str, given: Collection[str], missing: Sequence[str], are_there: bool
) -> Iterator[Finding]:
    """All rules. ``given`` is what ``--table`` names, ``missing`` what of that does not exist.

    ``are_there``: whether the database has any table that could be written to.
    """
    yield _named(given, missing)
    yield from _rights(written, role, are_there)
    yield from _primary_keys(written)
    yield from _conflict_targets(written)
    yield from _partitions(written)
    yield from _triggers(written)
    yield _listed(
        [f"{w.name} ({names(w.facts.rules)})" for w in written if w.facts.rules],
        Finding(
            "tables.rules",
            "warning",
            "rewrite rules, with which INSERT … ON CONFLICT is refused, or that do something else instead: "
            "{}",
            "make triggers of the rules, or DROP RULE",
        ),
        "no rewrite rules",
    )
    yield from _row_security(written)
    yield _listed(
        [f"{', '.join(w.facts.sequences)} of {w.name}" for w in written if w.facts.sequences],
        Finding(
            "tables.sequences",
            "warning",
            "defaults take numbers from sequences that the role may not use: {}; a put that leaves such a "
            "column "
            "out becomes a dead letter",
            f"GRANT USAGE ON SEQUENCE … TO {role}",
        ),
        "no default needs a sequence that the role may not use",
    )
    yield _listed(
        [w.name for w in written if any(c.is_generated for c in w.table.columns.values())],
        Finding(
            "tables.generated_columns",
            "note",
            "have generated columns: {}; a message that gives one becomes a dead letter",
        ),
        "no generated columns",
    )
    yield _listed(
        [w.name for w in written if w.table.cascades],
        Finding(
            "tables.cascades",
            "note",
            "deletes here remove or change rows of other tables (ON DELETE CASCADE, SET NULL, SET "
            "DEFAULT): {}; "
            "such a delete is a barrier, and writes coalesce on either side of it only",
        ),
        "no delete reaches another table",
    )
    yield _listed(
        [w.name for w in written if w.table.rank > 1],
        Finding(
            "tables.references",
            "note",
            "refer to other tables: {}; where a queue is divided into shards, a row and the one that it "
            "refers to keep their order only with a route in common",
        ),
        "no table refers to another one",
    )
    yield _listed(
        [w.name for w in written if w.facts.unlogged],
        Finding(
            "tables.unlogged",
            "warning",
            "unlogged: {}; a crash of Postgres empties them, and what was committed there is in no other "
            "place",
            "ALTER TABLE … SET LOGGED",
        ),
        "none is unlogged",
    )


def _listed(found: Sequence[str], finding: Finding, otherwise: str) -> Finding:
    """``finding``, with what was found in the place of its {}; or that all is well."""
    if not found:
        return Finding(finding.check, "ok", otherwise)
    return Finding(finding.check, finding.severity, finding.what.replace("{}", names(found)), finding.remedy)


def _named(given: Collection[str], missing: Sequence[str]) -> Finding:
    if missing:
        return Finding(
            "tables.named",
            "warning",
            f"--table names what does not exist: {names(missing)}; each write there becomes a dead letter",
            "correct --table (names are spelt as in the catalog, without quotes), or create the table; dead "
            "letters can be sent again",
        )
    if given:
        return Finding("tables.named", "ok", f"--table names {names([*given])}: there")
    return Finding("tables.named", "ok", "no --table: every table that the role may write to")


def _rights(written: Sequence[Written], role: str, are_there: bool) -> Iterator[Finding]:
    if not written and not are_there:
        yield Finding(
            "tables.rights",
            "warning",
            "the database has no table that could be written to: each write becomes a dead letter",
            "create the tables; or does --postgres-url name the wrong database?",
        )
        return
    if not written:
        yield Finding(
            "tables.rights",
            "warning",
            f"the role {role} may write to no table: each write becomes a dead letter",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON … TO {role}; see deploy/roles.sql",
        )
        return
    refused: dict[tuple[str, ...], list[str]] = {}
    hidden = [w.name for w in written if not w.facts.usage]
    for w in written:
        if w.facts.usage and w.facts.lacking:
            refused.setdefault(w.facts.lacking, []).append(w.name)
    if hidden:
        yield Finding(
            "tables.rights",
            "warning",
            f"the role {role} may not use the schema of {names(hidden)}: each write there becomes a dead "
            "letter",
            f"GRANT USAGE ON SCHEMA … TO {role}",
        )
    for lacking, them in refused.items():
        rights = ", ".join(lacking).upper()
        yield Finding(
            "tables.rights",
            "warning",
            f"the role {role} may not {rights} in {names(them)}: puts, patches and increments need SELECT, "
            "INSERT "
            "and UPDATE, and become dead letters",
            f"GRANT {rights} ON {names(them)} TO {role}",
        )
    undeletable = [w.name for w in written if w.facts.usage and not w.facts.delete]
    if undeletable:
        yield Finding(
            "tables.rights",
            "note",
            f"the role {role} may not DELETE in {names(undeletable)}: deletes there become dead letters",
            f"GRANT DELETE ON {names(undeletable)} TO {role}, if that is not meant",
        )
    if not (hidden or refused or undeletable):
        yield Finding(
            "tables.rights",
            "ok",
            f"the role {role} may read, write and delete in {names([w.name for w in written])}",
        )


def _primary_keys(written: Sequence[Written]) -> Iterator[Finding]:
    """Of tables that are not partitioned; for the others see `_conflict_targets`."""
    yield _listed(
        [w.name for w in written if not w.table.key and w.facts.partition_key is None],
        Finding(
            "tables.primary_keys",
            "warning",
            "no primary key: {}; their rows cannot be told apart, and each write there becomes a dead letter",
            "ALTER TABLE … ADD PRIMARY KEY (…), or leave them out by --table or REVOKE",
        ),
        "every table has a primary key",
    )


def _conflict_targets(written: Sequence[Written]) -> Iterator[Finding]:
    keyless = [w for w in written if w.facts.partition_key is not None and not w.table.key]
    invalid = [w.name for w in keyless if w.facts.key_invalid]
    without = [w for w in keyless if not w.facts.key_invalid]
    deferrable = [w.name for w in written if w.facts.key_deferrable]
    if invalid:
        yield Finding(
            "tables.conflict_targets",
            "warning",
            f"partitioned, and its primary key is not valid, as a partition has none that is attached to it: "
            f"{names(invalid)}; each write there becomes a dead letter",
            "give each partition the key, and ALTER INDEX … ATTACH PARTITION …",
        )
    if without:
        shown = [
            f"{w.name} (by {w.facts.partition_key}; {w.facts.keyed_children} of {w.facts.children} "
            "partitions "
            "have a key of their own, which is no target for a write to all)"
            for w in without
        ]
        yield Finding(
            "tables.conflict_targets",
            "warning",
            f"partitioned, without a primary key: {names(shown)}; each write there becomes a dead letter",
            "ALTER TABLE … ADD PRIMARY KEY (…), which must hold the columns of the partition key; or write "
            "to the "
            "partitions",
        )
    if deferrable:
        yield Finding(
            "tables.conflict_targets",
            "note",
            f"the primary key is deferrable, and so no target of ON CONFLICT: {names(deferrable)}; puts go a "
            "slower way (UPDATE, then INSERT)",
            "NOT DEFERRABLE, if nothing needs it",
        )
    if not (invalid or without or deferrable):
        parted = [
            f"{w.name} (the key, which `id` must give, is {', '.join(c.name for c in w.table.key)})"
            for w in written
            if w.facts.partition_key is not None
        ]
        also = f"; of the partitioned ones: {names(parted)}" if parted else ""
        yield Finding("tables.conflict_targets", "ok", f"each key is a target of ON CONFLICT{also}")


def _partitions(written: Sequence[Written]) -> Iterator[Finding]:
    parted = [w for w in written if w.facts.partition_key is not None]
    empty = [w.name for w in parted if not w.facts.children]
    gaps = [w.name for w in parted if w.facts.children and not w.facts.takes_any]
    inherited = [w.name for w in written if w.facts.partition_key is None and w.facts.children]
    if empty:
        yield Finding(
            "tables.partitions",
            "warning",
            f"partitioned, without any partition: {names(empty)}; each put there becomes a dead letter "
            "(23514)",
            "CREATE TABLE … PARTITION OF …",
        )
    if inherited:
        yield Finding(
            "tables.partitions",
            "warning",
            f"other tables inherit from {names(inherited)}: a patch or a delete reaches rows of theirs "
            "with the "
            "same key too, and the primary key does not span them",
            "partitions instead of inheritance; or allow the single tables by --table",
        )
    if gaps:
        yield Finding(
            "tables.partitions",
            "note",
            f"no DEFAULT partition: {names(gaps)}; a row that no partition takes becomes a dead letter "
            "(23514)",
            "make partitions ahead of time; dead letters can be sent again",
        )
    if not (empty or inherited or gaps):
        yield Finding("tables.partitions", "ok", "every row has its partition" if parted else "no partitions")


def _triggers(written: Sequence[Written]) -> Iterator[Finding]:
    found = [w for w in written if w.facts.triggers or w.facts.partition_triggers]
    yield _listed(
        [f"{w.name} ({names(w.facts.triggers + w.facts.partition_triggers)})" for w in found],
        Finding(
            "tables.triggers",
            "note",
            "row triggers BEFORE a write may change it, and a row that one skips becomes a dead letter "
            "(P0002): "
            "{}. One BEFORE INSERT makes puts go a slower way (UPDATE, then INSERT). They see the net "
            "effect of a "
            "batch, not each write",
            "see that each returns the row; do what must happen for each write where it is made",
        ),
        "no row trigger BEFORE a write",
    )


def _row_security(written: Sequence[Written]) -> Iterator[Finding]:
    secured = [w for w in written if w.facts.row_security]
    closed = [w.name for w in secured if {*w.facts.closed} & {*"raw"}]
    selective = [w.name for w in secured if w.facts.is_selective and w.name not in closed]
    remedy = "CREATE POLICY … TO the role USING (true) WITH CHECK (true), or ALTER ROLE … BYPASSRLS"
    if closed:
        yield Finding(
            "tables.row_security",
            "warning",
            "row-level security has no policy by which the role may read, insert and update in "
            f"{names(closed)}: "
            "such writes become dead letters",
            remedy,
        )
    if selective:
        yield Finding(
            "tables.row_security",
            "warning",
            f"row-level security looks at each row of {names(selective)}: a row that it hides is not "
            "changed, nor "
            "one written that it refuses; such writes become dead letters (42501, 23505, P0002), but a "
            "delete of a "
            "hidden row does nothing and says nothing",
            remedy,
        )
    if not (closed or selective):
        also = f" looks at no row of {names([w.name for w in secured])}" if secured else " does not apply"
        yield Finding("tables.row_security", "ok", f"row-level security{also}")
