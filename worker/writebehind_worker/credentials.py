"""Secrets as files: what systemd's LoadCredential=, or a mounted secret, puts into $CREDENTIALS_DIRECTORY.

A file is named like the key in the TOML file. Unlike an environment variable it is not inherited by children
nor shown to whoever may look at the process, and it can be exchanged while the process runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

VARIABLE = "CREDENTIALS_DIRECTORY"
NAMES = ("redis_url", "postgres_url")


def read_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """Field name → value, of those that are there; white space around a value is no part of it.

    Raises `ConfigError`, naming the file, if one cannot be read or is empty.
    """
    folder = environment.get(VARIABLE, "")
    values = {name: _read(Path(folder, name)) for name in NAMES if folder}
    return {name: value for name, value in values.items() if value is not None}


def _read(path: Path) -> str | None:
    try:
        value = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"the credential {path} cannot be read: {error.strerror}", f"check its owner, and ${VARIABLE}"
        ) from error
    except UnicodeDecodeError:  # its text quotes bytes of the secret
        raise ConfigError(f"the credential {path} is not UTF-8", "write the URL into it") from None
    if not value:
        raise ConfigError(f"the credential {path} is empty", "write the URL into it, or remove it")
    return value
