"""Data folders, which PostgreSQL must be able to reach as another account."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from pathlib import Path

from .errors import EmbeddedServerError


def default_data_dir() -> Path:
    """Where ``run --embedded`` keeps its data unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/writebehind")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "writebehind"


def temporary_data_dir(*preferred: Path) -> Path:
    """A new empty data folder that every account can reach. The caller removes it."""
    usual = (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - mkdtemp inside
    bases = (*preferred, *usual)
    base = next((base for base in bases if not closed_folders(base.resolve())), bases[0])
    folder = Path(tempfile.mkdtemp(prefix="writebehind-", dir=base))
    folder.chmod(0o711)
    return folder


_creating_root = threading.Lock()  # the other server's start must not see it before its mode is set


def create_root(root: Path) -> None:
    with _creating_root:
        try:
            root.mkdir(parents=True)
        except FileExistsError:
            return
        root.chmod(0o711 if os.geteuid() == 0 else 0o700)


def closed_folders(folder: Path) -> list[Path]:
    """Those of ``folder`` and its parents that other accounts cannot pass through."""
    return [path for path in (folder, *folder.parents) if not path.stat().st_mode & stat.S_IXOTH]


def require_reachable(root: Path) -> None:
    if closed := closed_folders(root):
        raise EmbeddedServerError(
            "PostgreSQL does not run as root, and nobody, as whom it would run, cannot pass through "
            f"{closed[0]}; choose a data folder that every account can reach, such as "
            "/var/lib/writebehind, or run as an ordinary user"
        )
