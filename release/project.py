"""The project's files and what `pyproject.toml` says of its dependencies."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NAME = "writebehind"
LOCK = ROOT / "requirements-dev.lock"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
"""The Pythons that are promised; `pyproject.toml` names them in its classifiers."""


def declared(root: Path = ROOT) -> dict[str, Any]:
    """The table `[project]` of `pyproject.toml`."""
    with (root / "pyproject.toml").open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)["project"]
    return table


def required(extra: str | None = None, root: Path = ROOT) -> list[Requirement]:
    """What the project needs by itself and for ``extra``, with the extras that this one names."""
    project = declared(root)
    texts = list(project["dependencies"])
    waiting = [extra] if extra else []
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(text)
            if canonicalize_name(requirement.name) == NAME:
                waiting.extend(requirement.extras)
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def files(root: Path = ROOT) -> list[str]:
    """What belongs to the project: what git has or would take. Paths from its root, sorted."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout
    return sorted(name for name in listed.decode().split("\0") if name and (root / name).is_file())
