"""A user's login session: its token, its row, and when it ends. No I/O."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from .errors import InvalidLoad, InvalidWrite
from .message import MAX_TTL_S

OWN_COLUMNS = frozenset({"id", "user_id", "created_at", "expires_at"})
"""Columns of the table that are the store's; all others are the application's fields."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A session as it is now.

    Attributes:
        id: names its row; it is the SHA-256 of the token, which is stored nowhere.
        user_id: whose it is, as text.
        created_at: when the user logged in, UTC.
        expires_at: when it ends unless it is used before, UTC.
        fields: the application's columns, as JSON has their values.
    """

    id: str
    user_id: str
    created_at: dt.datetime
    expires_at: dt.datetime
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long sessions live, in seconds.

    The end that is written lies ``slack`` of the lifetime beyond what is due, and is written again when that
    is used up: so that a session in use costs a write now and then, and never ends early.
    """

    idle_s: int
    slack: float
    max_age_s: int | None

    def __post_init__(self) -> None:
        for name, value in (("lifetime", self.idle_s), ("max_age", self.max_age_s)):
            if value is None and name == "max_age":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TTL_S // 2:
                raise ValueError(f"{name} must be whole seconds from 1 to {MAX_TTL_S // 2}, not {value!r}")
        if not 0.001 <= self.slack <= 1:
            raise ValueError(f"slack must be a share of the lifetime from 0.001 to 1, not {self.slack!r}")

    @property
    def ttl_s(self) -> int:
        """How long an entry is cached after a write: never shorter than its session may live then."""
        return int(self.idle_s * (1 + self.slack)) + 1

    def end(self, created_at: dt.datetime, now: dt.datetime) -> dt.datetime:
        """What to write for a session that is used now."""
        return self.not_beyond(created_at, now + dt.timedelta(seconds=self.idle_s * (1 + self.slack)))

    def is_due(self, session: LoginSession, now: dt.datetime) -> bool:
        """Whether the end that is written is too early for a session that is used now."""
        needed = self.not_beyond(session.created_at, now + dt.timedelta(seconds=self.idle_s))
        return needed > session.expires_at

    def not_beyond(self, created_at: dt.datetime, end: dt.datetime) -> dt.datetime:
        """An end, but never later than the greatest age allows."""
        if self.max_age_s is None:
            return end
        return min(end, created_at + dt.timedelta(seconds=self.max_age_s))


def make_token() -> str:
    """256 random bits as 43 characters that a cookie may hold."""
    return secrets.token_urlsafe(32)


def session_id(token: Any) -> str | None:
    """The id of a token's session; ``None`` for what no store ever gave out."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return None
    return hashlib.sha256(token.encode()).hexdigest()


def user_text(user_id: Any) -> str:
    """A user's id as text, as the table has it. Raises :class:`InvalidWrite`."""
    text = str(user_id) if isinstance(user_id, str | int | UUID) and not isinstance(user_id, bool) else ""
    if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise InvalidWrite(f"user_id must be a non-empty text, an integer or a UUID, not {user_id!r}")
    return text


def check_fields(table: str, fields: Any) -> None:
    """Raises :class:`InvalidWrite` for what is not column → value of the application's columns."""
    if not isinstance(fields, Mapping):
        raise InvalidWrite(f"{table}: fields must map column → value, not {type(fields).__name__}")
    if taken := OWN_COLUMNS & fields.keys():
        raise InvalidWrite(f"{table}: the column {min(taken)!r} is the store's own: choose another name")


def read_session(table: str, id: str, row: Mapping[str, Any]) -> LoginSession:
    """The session that a row says. Raises :class:`InvalidLoad` where columns are missing or no times."""
    if missing := OWN_COLUMNS - {"id"} - row.keys():
        raise InvalidLoad(f"{table}: a session's row has no {min(missing)!r}; `load` must return that column")
    return LoginSession(
        id,
        str(row["user_id"]),
        _moment(table, "created_at", row["created_at"]),
        _moment(table, "expires_at", row["expires_at"]),
        {name: value for name, value in row.items() if name not in OWN_COLUMNS},
    )


def _moment(table: str, column: str, text: Any) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = dt.datetime.min
    if moment.tzinfo is None:
        raise InvalidLoad(f"{table}.{column}: {text!r} is no time with its zone; make it a timestamptz")
    return moment.astimezone(dt.UTC)
