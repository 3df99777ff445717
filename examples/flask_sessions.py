"""Login sessions with Flask: `flask --app flask_sessions:from_environment run`, with a worker beside it.

REDIS_URL, POSTGRES_URL and QUEUE say where; the table is in sessions.sql. `__Host-` cookies need https.
"""

from __future__ import annotations

import hmac
import os
from typing import Any

import psycopg
from flask import Flask, Response, abort, jsonify, request
from psycopg.rows import dict_row

from writebehind import LoginSession, SessionEnded, SessionStore, WriteBehind

COOKIE = "__Host-session"
MAX_AGE_S = 30 * 86_400
PASSWORDS = {"ada": "lovelace", "bob": "the builder"}  # yours are hashed, and in a table


def make_app(redis_url: str, postgres_url: str, queue: str = "db:write:queue") -> Flask:
    app = Flask(__name__)

    # The loaders are called only when Redis does not have a session. An application would use its pool.
    def load(id: str) -> dict[str, Any] | None:
        with psycopg.connect(postgres_url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM sessions WHERE id = %s", [id]).fetchone()

    def load_ids_of_user(user_id: str) -> list[str]:
        with psycopg.connect(postgres_url) as connection:
            found = connection.execute("SELECT id FROM sessions WHERE user_id = %s", [user_id])
            return [id for (id,) in found]

    wb = WriteBehind.from_url(redis_url, queue=queue, prefix="cache:")
    store = SessionStore(
        wb, load=load, load_ids_of_user=load_ids_of_user, lifetime=14 * 86_400, max_age=MAX_AGE_S
    )
    app.extensions["writebehind"] = wb

    def token() -> str | None:
        return request.cookies.get(COOKIE)

    def logged_in() -> LoginSession:
        """The session of the request; prolonged by being asked for."""
        session = store.get(token())
        if session is None:
            abort(401)
        return session

    def give(response: Response, new: str) -> Response:
        """Sent back over https only, not shown to scripts, nor sent along when another site posts a form."""
        response.set_cookie(
            COOKIE, new, max_age=MAX_AGE_S, secure=True, httponly=True, samesite="Lax", path="/"
        )
        return response

    def take(response: Response) -> Response:
        response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="Lax", path="/")
        return response

    @app.post("/login")
    def login() -> Response:
        user, password = str(request.json["user"]), str(request.json["password"])
        if not hmac.compare_digest(PASSWORDS.get(user, "").encode(), password.encode()):
            abort(403)
        store.revoke(token())  # whatever this browser was before
        return give(jsonify(user=user), store.create(user, {"theme": "light", "data": {}}))

    @app.get("/me")
    def me() -> Response:
        session = logged_in()
        return jsonify(user=session.user_id, since=session.created_at.isoformat(), **session.fields)

    @app.post("/theme")
    def theme() -> Response:
        try:
            store.set(token(), "theme", str(request.json["theme"]))
        except SessionEnded:
            abort(401)
        return jsonify(theme=request.json["theme"])

    @app.post("/password")
    def password() -> Response:
        """After a change of the password: other sessions end, and this one is known by another token."""
        ended = store.revoke_all(logged_in().user_id, except_token=token())
        return give(jsonify(ended=len(ended)), store.rotate(token()))

    @app.post("/logout")
    def logout() -> Response:
        store.revoke(token())
        return take(jsonify(ok=True))

    @app.post("/logout-everywhere")
    def logout_everywhere() -> Response:
        ended = store.revoke_all(logged_in().user_id)
        return take(jsonify(ended=len(ended)))

    return app


def from_environment() -> Flask:
    return make_app(
        os.environ.get("REDIS_URL", "redis://localhost:6379/0"),
        os.environ["POSTGRES_URL"],
        os.environ.get("QUEUE", "db:write:queue"),
    )
