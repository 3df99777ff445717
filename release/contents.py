"""What has to be in the wheel and in the sdist, and what may not be. No I/O but reading the two."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

PACKAGES = {"producer/writebehind/": "writebehind/", "worker/writebehind_worker/": "writebehind_worker/"}
"""Where a package is in the repository, and in the wheel."""

SDIST_FOLDERS = ("producer", "worker", "tests", "bench", "deploy", "docs", "examples", "release")
SDIST_FILES = (
    "pyproject.toml",
    "schema.sql",
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "THIRD_PARTY.md",
    "requirements-dev.lock",
)
_LEFT_OVERS = (
    "__pycache__",
    ".pyc",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".so",
    ".DS_Store",
)


def read_wheel(path: Path) -> dict[str, bytes]:
    """Name → content."""
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}


def read_sdist(path: Path) -> dict[str, bytes]:
    """Name, without the folder that all are in, → content."""
    found = {}
    with tarfile.open(path) as sdist:
        for member in sdist.getmembers():
            file = sdist.extractfile(member)
            if file is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


def wheel_faults(wheel: Mapping[str, bytes], repository: Iterable[str], built_in: Path) -> list[str]:
    """What is wrong with the wheel of a repository that has these files and was built in that folder."""
    wanted = {
        name.replace(folder, package, 1)
        for name in repository
        for folder, package in PACKAGES.items()
        if name.startswith(folder)
    } | {"writebehind_worker/schema.sql"}
    own = {name for name in wheel if not name.partition("/")[0].endswith(".dist-info")}
    licences = {name.rpartition("/")[2] for name in wheel if ".dist-info/licenses/" in name}
    faults = [f"the wheel lacks {name}" for name in sorted(wanted - own)]
    faults += [f"the wheel has {name}, which is no part of the packages" for name in sorted(own - wanted)]
    faults += [f"the wheel lacks {name}" for name in ("LICENSE", "THIRD_PARTY.md") if name not in licences]
    return faults + _leaks("the wheel", wheel, built_in)


def sdist_faults(sdist: Mapping[str, bytes], repository: Iterable[str], built_in: Path) -> list[str]:
    """What is wrong with the sdist."""
    wanted = {n for n in repository if n in SDIST_FILES or n.partition("/")[0] in SDIST_FOLDERS}
    faults = [f"the sdist lacks {name}" for name in sorted((wanted | set(SDIST_FILES)) - set(sdist))]
    extra = set(sdist) - wanted - {"PKG-INFO", ".gitignore"}
    faults += [f"the sdist has {name}, which is not in the repository" for name in sorted(extra)]
    return faults + _leaks("the sdist", sdist, built_in)


def _leaks(where: str, contents: Mapping[str, bytes], built_in: Path) -> list[str]:
    """What a build has left behind, and paths of the machine that it ran on."""
    faults = [f"{where} has {n}" for n in sorted(contents) if any(left in n for left in _LEFT_OVERS)]
    # Beside the folder of the build: a home may be no more than /root, which documents may well speak of.
    marks = {str(built_in), str(built_in.resolve())}
    return faults + [
        f"{where}: {name} has the path {mark}"
        for name, content in sorted(contents.items())
        for mark in sorted(marks)
        if mark.encode() in content
    ]
