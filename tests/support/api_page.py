"""docs/api.md: the public API on one page. ``python -m tests.support.api_page`` writes it anew from the code.

What stands between ``<!-- signatures: NAMES -->`` and ``<!-- end -->`` is the code's, the rest prose.
A public name that no such line has goes under the last of them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import writebehind
from writebehind import Settings

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
_SECTION = re.compile(r"<!-- signatures: (?P<names>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)
_MODULE = re.compile(r"\b(?:writebehind(?:\.\w+)*|collections\.abc|typing|redis(?:\.\w+)*)\.(?=\w)")


def page(old: str) -> str:
    """The page with its signatures as the code has them now."""
    sections = list(_SECTION.finditer(old))
    named = [name for found in sections for name in found["names"].split()]
    twins = {f"Async{name}" for name in writebehind.__all__}
    rest = [n for n in writebehind.__all__ if n not in named and n not in twins]
    last = sections[-1]

    def written(found: re.Match[str]) -> str:
        names = [n for n in found["names"].split() if n in writebehind.__all__]
        names += rest if found.start() == last.start() else []
        body = "".join(f"\n{line}" for name in names for line in _lines(name))
        return f"<!-- signatures: {' '.join(names)} -->{body}\n<!-- end -->"

    return _SECTION.sub(written, old)


def _lines(name: str) -> list[str]:
    kind = getattr(writebehind, name)
    twin = f" · `Async{name}`" if f"Async{name}" in writebehind.__all__ else ""
    lines = [f"- **`{name}`**{twin}: {_summary(kind)}"]
    if kind is Settings:
        return lines + [_setting(field) for field in dataclasses.fields(Settings)]
    if not inspect.isclass(kind) or issubclass(kind, BaseException) or name == "Options":
        return lines
    for member in sorted(_public(kind), key=lambda n: _place(kind, n)):
        lines.append(f"  - `{_signature(kind, member)}`: {_summary(inspect.getattr_static(kind, member))}")
    return lines


def _public(kind: type) -> list[str]:
    return [
        name
        for name, member in inspect.getmembers_static(kind)
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, classmethod | staticmethod | property))
    ]


def _place(kind: type, name: str) -> tuple[int, int]:
    """As the code has them, the class's own first."""
    for depth, base in enumerate(kind.__mro__):
        if name in vars(base):
            return depth, list(vars(base)).index(name)
    return 99, 0


def _signature(kind: type, name: str) -> str:
    if isinstance(inspect.getattr_static(kind, name), property):
        return name
    signature = inspect.signature(getattr(kind, name))
    own = [p for p in signature.parameters.values() if p.name != "self"]
    text = _MODULE.sub("", str(signature.replace(parameters=own)))
    return name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are text, defaults stay quoted


def _setting(field: dataclasses.Field[Any]) -> str:
    found = re.search(
        rf"\n    {field.name}: (.*?)(?=\n    \w+: |\n\s*\n|\Z)", inspect.getdoc(Settings) or "", re.DOTALL
    )
    default = field.default.__name__ if callable(field.default) else repr(field.default)
    meaning = " ".join(found[1].split()) if found else ""
    return f"  - `{field.name}: {field.type} = {default}`: {meaning}"


def _summary(member: Any) -> str:
    """The docstring's first paragraph, its references as plain code."""
    text = " ".join((inspect.getdoc(getattr(member, "__func__", member)) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
