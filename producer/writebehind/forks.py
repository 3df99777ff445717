"""What has to begin anew in a forked child: a child starts with one thread, so nobody else is about then."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_Owner = TypeVar("_Owner")
_anew: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def begins_anew_in_a_child(owner: _Owner, how: Callable[[_Owner], None]) -> None:
    """For as long as ``owner`` is there, ``how`` is called with it in each child."""
    _anew[owner] = how


def _after_fork() -> None:
    for owner, how in list(_anew.items()):
        how(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
