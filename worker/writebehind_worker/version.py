"""The version that is installed."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def installed_version() -> str:
    """As the package's metadata has it; ``unknown`` where it is run from its source."""
    try:
        return metadata.version("writebehind")
    except metadata.PackageNotFoundError:
        return "unknown"
