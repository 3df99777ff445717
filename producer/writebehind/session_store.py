"""``SessionStore``: login sessions of a web application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from .cache import Loader
from .client import WriteBehind
from .login_session import Lifetime, LoginSession
from .receipt import Receipt
from .session_core import IdsLoader, SessionCore

TWO_WEEKS_S = 14 * 86_400


class SessionStore:
    """Login sessions, read from Redis and written behind to a table: a flush of Redis logs nobody out.

    A session is named by a token of 256 random bits, for a cookie. Only its SHA-256 is stored, as the id of
    the row. Each call takes a token as the browser sent it: what is none is a session that does not exist.

    Args:
        wb: the client; give it a ``prefix``, as for all cached rows. All stores of a table need the same one:
            what is revoked under one prefix lives on under another. Its ``version`` and ``admit`` are not
            for sessions; its ``durability`` is, but not for prolonging them.
        load: called with an id when a session is not cached; returns its row from the primary, with the
            columns ``user_id``, ``created_at``, ``expires_at`` and the application's, or ``None``.
        load_ids_of_user: called with a user's id, as text, by :meth:`revoke_all`; returns the ids of all that
            user's rows, from the primary.
        lifetime: how long a session lives without being used, in seconds.
        slack: a share of ``lifetime``. ``expires_at`` is written when a session's end has moved by so much;
            a session lives up to so much longer than its lifetime, and never shorter.
        max_age: when a session ends however often it is used, in seconds from the login; ``None``: never.
        table: the table of the sessions, with the columns ``id``, ``user_id``, ``created_at`` and
            ``expires_at`` (``timestamptz``), and others of the application's. All stores of it must spell it
            the same way.
        timeout: longest wait, in seconds, for a write to a session that the cache cannot show.

    Every call may raise RedisRefused or RedisUnavailable, and what ``load`` raises. One that writes may raise
    QueueFull or RedisFull; then nothing has been written. Where the client has a ``durability``, it may raise
    DurabilityNotReached, FlushTimeout, WriteRejected or OutcomeUnknown, as the client's writes do. Then Redis
    has accepted it, and readers see it; the error's ``token`` is that of a session that was made.
    """

    def __init__(
        self,
        wb: WriteBehind,
        *,
        load: Loader,
        load_ids_of_user: IdsLoader,
        lifetime: int = TWO_WEEKS_S,
        slack: float = 0.1,
        max_age: int | None = None,
        table: str = "sessions",
        timeout: float = 5.0,
    ) -> None:
        limits = Lifetime(lifetime, slack, max_age)
        self._carrier = wb._carrier
        self._core = SessionCore(wb._core, wb._receipt, load, load_ids_of_user, limits, table, timeout)

    def create(self, user_id: str | int | UUID, fields: Mapping[str, Any] | None = None) -> str:
        """Logs a user in, and returns the token. ``fields`` are columns of the table, column → value.

        Until Redis has lost it, the session shows just the fields that were given: give each that you read.

        Raises:
            InvalidWrite: no user, a column of the store's own, a value that JSON cannot carry.
            RedisUnavailable: Redis may have accepted the session; nobody knows its token.
            DurabilityNotReached, FlushTimeout: the session is there, and ``error.token`` is its token.
        """
        return self._carrier.run(self._core.create(user_id, fields or {}))

    def get(self, token: str | None) -> LoginSession | None:
        """The session, which now lives for its lifetime again; ``None`` if it has ended or never was.

        That Redis or the queue has no room to prolong it is no error here: the next call tries again.

        Raises:
            InvalidLoad: ``load`` returned a row without a column that is needed.
            FlushTimeout: something other than the store wrote to the row, and it is not committed in time.
        """
        return self._carrier.run(self._core.get(token))

    def touch(self, token: str | None) -> bool:
        """Prolongs a session as :meth:`get` does; whether there is one. Raises if it cannot be prolonged."""
        return self._carrier.run(self._core.touch(token))

    def set(self, token: str | None, field: str, value: Any) -> Receipt:
        """Changes one field of a session, and prolongs it.

        Raises:
            SessionEnded: there is no such session, and none is made.
            InvalidWrite: a column of the store's own, a value that JSON cannot carry.
        """
        return self.update(token, {field: value})

    def update(self, token: str | None, fields: Mapping[str, Any]) -> Receipt:
        """Changes some fields at once, and prolongs the session. Raises as :meth:`set`."""
        return self._carrier.run(self._core.update(token, fields))

    def rotate(self, token: str | None) -> str:
        """Gives the session another token, and returns it; the old one is worth nothing from now on.

        To be called when what a session may do grows, so that a token that was known before is of no use.

        Raises:
            SessionEnded: there is no such session.
            RedisUnavailable: the old token may be worth nothing already; the user may have to log in again.
            DurabilityNotReached, FlushTimeout: it is worth nothing now, and ``error.token`` is the new one.
        """
        return self._carrier.run(self._core.rotate(token))

    def revoke(self, token: str | None) -> Receipt | None:
        """Ends a session for every reader, at once. It is no error if there is none.

        The receipt tells when Postgres has it: only then does it hold whatever Redis may lose. ``None`` for
        what is no token.
        """
        return self._carrier.run(self._core.revoke(token))

    def revoke_all(self, user_id: str | int | UUID, *, except_token: str | None = None) -> list[Receipt]:
        """Ends every session of a user that was there when this was called; a receipt for each.

        Those that are not in Postgres yet, too, and those that are rotated meanwhile. One that is created
        meanwhile may live on.

        Args:
            user_id: the user.
            except_token: of the one session to keep.

        Raises:
            WriteBehindError: or what ``load_ids_of_user`` raises. Some may have been revoked: call it again.
                No session of the user can be rotated for a minute, or until that has been done.
        """
        return self._carrier.run(self._core.revoke_all(user_id, except_token))
