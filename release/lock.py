"""`requirements-dev.lock`: one version, with hashes, of everything that development needs.

`python -m release.lock` writes it anew; `--upgrade` takes the newest versions that the ranges allow.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

from packaging.markers import Marker
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from .project import LOCK, ROOT, VERSIONS

HEAD = """\
# What `make test` installs: made by `make lock` from the extra `dev` of pyproject.toml, for Python {} to {}
# on every platform. Not to be changed by hand.
"""

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.*))?")


@dataclass(frozen=True)
class Locked:
    """One package: the version to install where ``marker`` holds, and the hashes of its files."""

    name: NormalizedName
    version: Version
    marker: Marker | None
    hashes: tuple[str, ...]


def read_lock(text: str) -> list[Locked]:
    """The packages of a lock, in its order. Raises ``ValueError`` for a line that is none."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.partition("#")[0].split("--hash=")
        if not requirement.strip():
            continue
        match = _LINE.fullmatch(requirement.strip())
        if match is None:
            raise ValueError(f"{LOCK.name}: {requirement.strip()!r} is not pinned; run `make lock`")
        marker = Marker(match["marker"]) if match["marker"] else None
        found.append(
            Locked(
                canonicalize_name(match["name"]),
                Version(match["version"]),
                marker,
                tuple(h.strip() for h in hashes),
            )
        )
    return found


def main() -> None:
    """Writes the lock; needs `uv`, of the extra `release`, and a package index."""
    command = ["-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--python-version", VERSIONS[0]]
    command += ["--extra", "dev", "--output-file", str(LOCK), "pyproject.toml", *sys.argv[1:]]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    body = "".join(
        line for line in LOCK.read_text().splitlines(keepends=True) if not line.startswith(("#", "--"))
    )
    LOCK.write_text(HEAD.format(VERSIONS[0], VERSIONS[-1]) + body)
    print(f"{LOCK.name}: {len(read_lock(body))} packages")


if __name__ == "__main__":
    main()
