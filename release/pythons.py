"""Which Pythons this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_ASK = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2], sys.prefix == sys.base_prefix)"


def find_python(version: str, folder: Path) -> Path | None:
    """An interpreter of this version, such as 3.12: that uv put into ``folder``, of pyenv, or of the PATH."""
    return next((path for path in _candidates(version, folder) if _is(path, version)), None)


def download_python(uv: list[str], version: str, folder: Path) -> str:
    """Has uv put one into ``folder``; "" if it did, else what it said last."""
    try:
        done = subprocess.run(
            [*uv, "python", "install", "--no-bin", version],
            env={**os.environ, "UV_PYTHON_INSTALL_DIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "uv did not get it within 300 s"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else lines[-1].strip() if lines else f"uv ended with {done.returncode}"


def _candidates(version: str, folder: Path) -> Iterator[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(folder.glob(f"cpython-{version}.*/bin/python{version}"), reverse=True)
    yield from sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)
    if found := shutil.which(f"python{version}"):
        yield Path(found)


def _is(path: Path, version: str) -> bool:
    """Asked, not guessed: pyenv's shims are on the PATH for versions that it would not start."""
    done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.split()[0] == version
