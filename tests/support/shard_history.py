"""Rows that tell whether a write to them was lost, repeated or out of order: whichever shard it went by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

HISTORY = """
CREATE TABLE rows (id int PRIMARY KEY, v bigint, n bigint);
CREATE TABLE history (at bigserial PRIMARY KEY, id int, v bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO history (id, v) VALUES (NEW.id, NEW.v); RETURN NEW; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON rows FOR EACH ROW EXECUTE FUNCTION note();
"""
"""Each write to a row is an increment of ``n`` by 1, and a put of ``v``, which is one more each time."""


def check_history(pg: psycopg.Connection[Any], written: Iterable[Mapping[int, int]]) -> None:
    """``written``: row → how often it was written."""
    expected = {id: (count, count) for counts in written for id, count in counts.items()}
    assert expected
    assert {id: (v, n) for id, v, n in pg.execute("SELECT id, v, n FROM rows")} == expected
    last: dict[int, int] = {}
    for id, v in pg.execute("SELECT id, v FROM history WHERE v IS NOT NULL ORDER BY at"):
        assert v >= last.get(id, 0), "a row went back"
        last[id] = v
    assert pg.execute("SELECT count(*) FROM writebehind.dead_letters").fetchone() == (0,)
