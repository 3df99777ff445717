"""What each error of Postgres means for a batch: to wait, to look for a lock, or to blame the write."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from writebehind_worker.sqlstate import Verdict, advice, judge

VERDICTS = {
    Verdict.TRANSIENT: {
        "08000": "connection exception",
        "08003": "connection does not exist",
        "08006": "connection failure",
        "25006": "read-only transaction: a standby",
        "25P01": "no transaction: ours is gone",
        "25P02": "our transaction has failed",
        "25P03": "idle in transaction for too long",
        "25P04": "transaction took too long",
        "08P01": "protocol violation: a pooler's own errors",
        "40000": "transaction rolled back",
        "40001": "serialization failure",
        "40003": "statement completion unknown",
        "40P01": "deadlock",
        "53100": "disk full",
        "53200": "out of memory",
        "53300": "too many connections",
        "53400": "configured limit exceeded: temporary files, say",
        "57P01": "admin shutdown",
        "57P02": "crash shutdown",
        "57P03": "cannot connect now",
        "57P04": "database dropped: the next connection tells",
        "57P05": "idle session timeout",
        "58000": "system error",
        "58030": "I/O error",
        "58P01": "undefined file",
        "72000": "snapshot too old",
        "HV00N": "a foreign server does not answer",
    },
    Verdict.TIMEOUT: {"55P03": "lock not available", "57014": "statement timeout, or cancelled"},
    Verdict.TARGET: {
        "28000": "invalid authorization",
        "28P01": "invalid password",
        "3D000": "no such database",
        "26000": "prepared statement gone: a pooler",
        "42P05": "prepared statement of another client: a pooler",
    },
    Verdict.ROW: {
        "0A000": "feature not supported",
        "21000": "cardinality violation",
        "22001": "string too long",
        "22003": "numeric value out of range",
        "22021": "character not in repertoire",
        "22P02": "invalid text representation",
        "22P05": "untranslatable character: NUL",
        "23502": "not null",
        "23503": "foreign key",
        "23505": "unique",
        "23514": "check",
        "23P01": "exclusion",
        "25001": "a trigger does what no transaction may",
        "2D000": "a trigger tries to commit",
        "3F000": "no such schema",
        "40002": "constraint, at the end of the transaction",
        "42501": "insufficient privilege, row-level security too",
        "42703": "undefined column",
        "42P01": "undefined table",
        "428C9": "generated always",
        "44000": "WITH CHECK OPTION",
        "54000": "program limit exceeded: an index row too long",
        "54001": "statement too complex",
        "55000": "object not in prerequisite state: a trigger's",
        "55006": "object in use",
        "P0001": "raised by a trigger",
        "P0002": "no data found",
        "XX000": "internal error",
        "XX001": "data corrupted: of this row, others may be sound",
        "XX002": "index corrupted",
        "ZZ999": "a code that nobody knows",
    },
}
CASES = [(state, verdict) for verdict, states in VERDICTS.items() for state in states]


def error_with(state: str | None, kind: type[psycopg.Error] = psycopg.DatabaseError) -> psycopg.Error:
    error: psycopg.Error = type("Raised", (kind,), {"sqlstate": state})("message")
    return error


@pytest.mark.parametrize(("state", "verdict"), CASES)
def test_an_error_is_judged_by_its_sqlstate(state: str, verdict: Verdict) -> None:
    assert judge(error_with(state)) is verdict


@pytest.mark.parametrize(("state", "verdict"), CASES)
def test_the_class_that_psycopg_raises_changes_nothing(state: str, verdict: Verdict) -> None:
    assert judge(error_with(state, psycopg.OperationalError)) is verdict


def test_an_operational_error_without_a_code_is_a_broken_connection() -> None:
    assert judge(psycopg.OperationalError("the connection is closed")) is Verdict.TRANSIENT


def test_a_value_that_the_driver_cannot_send_is_the_fault_of_the_write() -> None:
    assert judge(psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")) is Verdict.ROW


def test_errors_of_a_real_server_carry_the_codes(pg: psycopg.Connection) -> None:
    with pytest.raises(pg_error("22012")) as found:
        pg.execute("SELECT 1 / 0")
    assert judge(found.value) is Verdict.ROW
    with pytest.raises(pg_error("57014")) as timed_out:
        pg.execute("SET statement_timeout = 1; SELECT pg_sleep(10)")
    assert judge(timed_out.value) is Verdict.TIMEOUT


def pg_error(state: str) -> type[psycopg.Error]:
    return pg.lookup(state)


@pytest.mark.parametrize("state", [*VERDICTS[Verdict.TRANSIENT], *VERDICTS[Verdict.TARGET], None])
def test_whatever_is_waited_for_has_a_next_step(state: str | None) -> None:
    assert len(advice(error_with(state))) > 15
