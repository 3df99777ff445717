"""Login sessions with FastAPI: `uvicorn --factory fastapi_sessions:from_environment`, and a worker beside.

REDIS_URL, POSTGRES_URL and QUEUE say where; the table is in sessions.sql. `__Host-` cookies need https.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import psycopg
from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from psycopg.rows import dict_row
from pydantic import BaseModel

from writebehind import AsyncSessionStore, AsyncWriteBehind, LoginSession, SessionEnded

COOKIE = "__Host-session"
MAX_AGE_S = 30 * 86_400
PASSWORDS = {"ada": "lovelace", "bob": "the builder"}  # yours are hashed, and in a table


class Login(BaseModel):
    user: str
    password: str


class Theme(BaseModel):
    theme: str


Token = Annotated[str | None, Cookie(alias=COOKIE)]


def sessions(request: Request) -> AsyncSessionStore:
    store: AsyncSessionStore = request.app.state.sessions
    return store


Store = Annotated[AsyncSessionStore, Depends(sessions)]


async def logged_in(store: Store, token: Token = None) -> LoginSession:
    """The session of the request; prolonged by being asked for."""
    session = await store.get(token)
    if session is None:
        raise HTTPException(401, "log in first")
    return session


Session = Annotated[LoginSession, Depends(logged_in)]


def give(response: Response, token: str) -> None:
    """Sent back over https only, not shown to scripts, nor sent along when another site posts a form."""
    response.set_cookie(
        COOKIE, token, max_age=MAX_AGE_S, secure=True, httponly=True, samesite="lax", path="/"
    )


def take(response: Response) -> None:
    response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax", path="/")


def make_app(redis_url: str, postgres_url: str, queue: str = "db:write:queue") -> FastAPI:
    # The loaders are called only when Redis does not have a session. An application would use its pool.
    async def load(id: str) -> dict[str, Any] | None:
        async with await psycopg.AsyncConnection.connect(postgres_url, row_factory=dict_row) as connection:
            found = await connection.execute("SELECT * FROM sessions WHERE id = %s", [id])
            return await found.fetchone()

    async def load_ids_of_user(user_id: str) -> list[str]:
        async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
            found = await connection.execute("SELECT id FROM sessions WHERE user_id = %s", [user_id])
            return [id for (id,) in await found.fetchall()]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncWriteBehind.from_url(redis_url, queue=queue, prefix="cache:") as wb:
            app.state.sessions = AsyncSessionStore(
                wb, load=load, load_ids_of_user=load_ids_of_user, lifetime=14 * 86_400, max_age=MAX_AGE_S
            )
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/login")
    async def login(body: Login, response: Response, store: Store, token: Token = None) -> dict[str, str]:
        if not hmac.compare_digest(PASSWORDS.get(body.user, "").encode(), body.password.encode()):
            raise HTTPException(403, "wrong name or password")
        await store.revoke(token)  # whatever this browser was before
        give(response, await store.create(body.user, {"theme": "light", "data": {}}))
        return {"user": body.user}

    @app.get("/me")
    async def me(session: Session) -> dict[str, Any]:
        return {"user": session.user_id, "since": session.created_at, **session.fields}

    @app.post("/theme")
    async def theme(body: Theme, store: Store, token: Token = None) -> dict[str, str]:
        try:
            await store.set(token, "theme", body.theme)
        except SessionEnded:
            raise HTTPException(401, "log in first") from None
        return {"theme": body.theme}

    @app.post("/password")
    async def password(
        response: Response, session: Session, store: Store, token: Token = None
    ) -> dict[str, int]:
        """After a change of the password: other sessions end, and this one is known by another token."""
        ended = await store.revoke_all(session.user_id, except_token=token)
        give(response, await store.rotate(token))
        return {"ended": len(ended)}

    @app.post("/logout")
    async def logout(response: Response, store: Store, token: Token = None) -> dict[str, bool]:
        await store.revoke(token)
        take(response)
        return {"ok": True}

    @app.post("/logout-everywhere")
    async def logout_everywhere(response: Response, session: Session, store: Store) -> dict[str, int]:
        ended = await store.revoke_all(session.user_id)
        take(response)
        return {"ended": len(ended)}

    return app


def from_environment() -> FastAPI:
    return make_app(
        os.environ.get("REDIS_URL", "redis://localhost:6379/0"),
        os.environ["POSTGRES_URL"],
        os.environ.get("QUEUE", "db:write:queue"),
    )
