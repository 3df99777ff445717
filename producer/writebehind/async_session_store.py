"""``AsyncSessionStore``: login sessions of a web application, on an event loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from .async_client import AsyncWriteBehind
from .async_receipt import AsyncReceipt
from .cache import Loader
from .login_session import Lifetime, LoginSession
from .session_core import IdsLoader, SessionCore
from .session_store import TWO_WEEKS_S


class AsyncSessionStore:
    """:class:`SessionStore` for asyncio: the same calls, awaited. The loaders may be coroutine functions."""

    def __init__(
        self,
        wb: AsyncWriteBehind,
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

    async def create(self, user_id: str | int | UUID, fields: Mapping[str, Any] | None = None) -> str:
        """See :meth:`SessionStore.create`."""
        return await self._carrier.run(self._core.create(user_id, fields or {}))

    async def get(self, token: str | None) -> LoginSession | None:
        """See :meth:`SessionStore.get`."""
        return await self._carrier.run(self._core.get(token))

    async def touch(self, token: str | None) -> bool:
        """See :meth:`SessionStore.touch`."""
        return await self._carrier.run(self._core.touch(token))

    async def set(self, token: str | None, field: str, value: Any) -> AsyncReceipt:
        """See :meth:`SessionStore.set`."""
        return await self.update(token, {field: value})

    async def update(self, token: str | None, fields: Mapping[str, Any]) -> AsyncReceipt:
        """See :meth:`SessionStore.update`."""
        return await self._carrier.run(self._core.update(token, fields))

    async def rotate(self, token: str | None) -> str:
        """See :meth:`SessionStore.rotate`."""
        return await self._carrier.run(self._core.rotate(token))

    async def revoke(self, token: str | None) -> AsyncReceipt | None:
        """See :meth:`SessionStore.revoke`."""
        return await self._carrier.run(self._core.revoke(token))

    async def revoke_all(
        self, user_id: str | int | UUID, *, except_token: str | None = None
    ) -> list[AsyncReceipt]:
        """See :meth:`SessionStore.revoke_all`."""
        return await self._carrier.run(self._core.revoke_all(user_id, except_token))
