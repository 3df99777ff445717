"""Lua scripts: read from the package once, sent by hash, in full where the server has not seen them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import NoScriptError

Argument = str | bytes | int


class Client(Protocol):
    """What a script needs of redis-py's client."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...


_INCLUDE = re.compile(rb"^-- include (\w+)\n", re.MULTILINE)


GUARDED: dict[Argument, Argument] = {}
"""Source or hash of a script → that of the same script, which leaves its last key alone: see cluster.py."""
_FIRST_LINE = re.compile(rb"#!lua[^\n]*\n")


class Script:
    """One Lua script of a package's ``lua`` folder; its line ``-- include x`` stands for those of ``x``."""

    def __init__(self, package: str, name: str) -> None:
        folder = resources.files(package).joinpath("lua")

        def read(name: str) -> bytes:
            return folder.joinpath(f"{name}.lua").read_bytes()

        self.source = _INCLUDE.sub(lambda m: read(m[1].decode()).partition(b"\n")[2], read(name))
        self.sha = _sha(self.source)
        head = _FIRST_LINE.match(self.source)
        start = head.end() if head else 0
        guarded = self.source[:start] + b"KEYS[#KEYS] = nil\n" + self.source[start:]
        GUARDED.update({self.source: guarded, self.sha: _sha(guarded)})

    def __call__(self, client: Client, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Runs it and returns Redis' reply. NOSCRIPT means that nothing was run: then it is sent whole."""
        try:
            return client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return client.execute_command(*self.whole_command(keys, args))

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Sequence[Argument]:
        """What runs it where the server has seen it."""
        return ["EVALSHA", self.sha, len(keys), *keys, *args]

    def whole_command(self, keys: Sequence[str], args: Sequence[Argument]) -> Sequence[Argument]:
        """What runs it anywhere."""
        return ["EVAL", self.source, len(keys), *keys, *args]


def _sha(source: bytes) -> str:
    return hashlib.sha1(source, usedforsecurity=False).hexdigest()
