"""`THIRD_PARTY.md`: what the project needs to run, in which version it is tested, under which licence.

`python -m release.third_party` writes it, from the lock and what the installed packages say of themselves.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from .lock import read_lock
from .project import LOCK, ROOT, VERSIONS, required

PATH = ROOT / "THIRD_PARTY.md"
_TEXT = Path(__file__).parent / "third-party.md"

COMPATIBLE = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "LGPL-3.0-only", "MIT", "PSF-2.0"}
"""Licences of what an Apache-2.0 project may need. LGPL: as a library that is not changed, see the text."""

_CLASSIFIERS = {"License :: OSI Approved :: MIT License": "MIT"}
_SPELLINGS = {"MIT License": "MIT"}
# Needed by some Pythons only, so perhaps not installed where this runs.
_ELSEWHERE = {"async-timeout": "Apache-2.0", "typing-extensions": "PSF-2.0", "commonmark": "BSD-3-Clause"}
_PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))


@dataclass(frozen=True)
class Part:
    """A package that is needed to run; ``needed_for`` is the library, or one of its extras."""

    name: str
    version: str
    licence: str
    needed_for: str


def parts() -> list[Part]:
    """All, in the order of their names. Raises ``LookupError`` for one that is not locked or installed."""
    locked = {package.name: str(package.version) for package in read_lock(LOCK.read_text())}
    found: dict[NormalizedName, str] = {}
    for extra in (None, "worker", "zstd", "opentelemetry", "embedded", "testing"):
        for name in _closure(required(extra)):
            found.setdefault(name, extra or "library")
    return [Part(name, locked[name], licence(name), found[name]) for name in sorted(found)]


def licence(name: NormalizedName) -> str:
    """The SPDX expression of an installed package, or what it says instead."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return _ELSEWHERE[name]
    for field in ("License-Expression", "License"):
        said = str(metadata[field]) if field in metadata else ""
        if said and len(said) < 50:  # some have the whole text there
            return _SPELLINGS.get(said, said)
    classifiers = metadata.get_all("Classifier") or []
    return next((_CLASSIFIERS[c] for c in classifiers if c in _CLASSIFIERS), "unknown")


def text(found: Iterable[Part]) -> str:
    """The document."""
    lines = ["| package | version | licence | needed for |", "|---|---|---|---|"]
    lines += [f"| {part.name} | {part.version} | {part.licence} | {part.needed_for} |" for part in found]
    return _TEXT.read_text().replace("{packages}", "\n".join(lines))


def compatible(expression: str) -> bool:
    """Whether an SPDX expression of plain ANDs and ORs has only, or offers, what is compatible."""
    return any(
        all(name.strip(" ()") in COMPATIBLE for name in choice.split(" AND "))
        for choice in expression.split(" OR ")
    )


def _closure(wanted: Iterable[Requirement]) -> set[NormalizedName]:
    """What these need, and what that needs, on any Python and platform that is promised."""
    found: set[NormalizedName] = set()
    waiting = [r for r in wanted if _applies(r, "")]
    done: set[tuple[NormalizedName, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in done:
                done.add((name, extra))
                waiting += [r for r in _requires(name) if _applies(r, extra)]
    return found


def _requires(name: NormalizedName) -> list[Requirement]:
    try:
        return [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _applies(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    if marker is None:
        return True
    return any(
        marker.evaluate(
            {
                "implementation_name": "cpython",
                "os_name": "posix",
                "platform_python_implementation": "CPython",
                "python_version": version,
                "python_full_version": f"{version}.{micro}",
                "sys_platform": platform,
                "platform_machine": machine,
                "extra": extra,
            }
        )
        for version in VERSIONS
        for micro in (0, 9)
        for platform, machine in _PLATFORMS
    )


def main() -> None:
    """Writes the file."""
    found = parts()
    PATH.write_text(text(found))
    print(f"{PATH.name}: {len(found)} packages")


if __name__ == "__main__":
    main()
