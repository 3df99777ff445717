"""Options of our own connections to a cluster's nodes, as a client of redis-py's has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OURS = re.compile(
    r"(ssl|socket)_\w+|username|password|credential_provider|protocol|encoding|encoding_errors|client_name"
    r"|lib_name|lib_version|driver_info|health_check_interval|legacy_responses"
)


def own_options(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what ties a connection to their client: its callbacks, its retries, where it goes."""
    return {name: value for name, value in theirs.items() if _OURS.fullmatch(name)}
