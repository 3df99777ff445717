"""The async client has all that the sync one has, called the same way."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

import writebehind
from writebehind import Options, Settings, WriteBehind

TWINS = [
    (getattr(writebehind, name.removeprefix("Async")), getattr(writebehind, name))
    for name in writebehind.__all__
    if name.startswith("Async")
]


def public(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("sync", "other"), TWINS, ids=lambda kind: kind.__name__)
def test_every_call_of_one_client_is_one_of_the_other(sync: type, other: type) -> None:
    assert public(sync).keys() == public(other).keys()
    for name, member in public(sync).items():
        if callable(member):
            ours = inspect.signature(member).parameters.values()
            theirs = inspect.signature(public(other)[name]).parameters.values()
            assert [(p.name, p.kind, p.default) for p in ours] == [
                (p.name, p.kind, p.default) for p in theirs
            ], name


def test_every_class_with_a_twin_is_exported() -> None:
    assert (WriteBehind, writebehind.AsyncWriteBehind) in TWINS


def test_options_are_the_settings() -> None:
    hints = get_type_hints(Settings)
    assert {f.name: hints[f.name] for f in fields(Settings)} == get_type_hints(Options)


def test_each_setting_is_documented() -> None:
    for f in fields(Settings):
        assert f"\n    {f.name}: " in (inspect.getdoc(Settings) or "")
