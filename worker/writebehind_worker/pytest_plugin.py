"""Fixtures for tests of applications: `writebehind_stack` has a client, a worker, servers, and faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing.servers import Servers
    from .testing.stack import Stack


@pytest.fixture(scope="session")
def writebehind_servers() -> Iterator[Servers]:
    """The session's Redis and Postgres: see :mod:`writebehind_worker.testing.servers` for the choice."""
    from .testing.servers import session_servers  # noqa: PLC0415 - nothing is imported until it is used

    with session_servers() as servers:
        yield servers


@pytest.fixture
def writebehind_stack(writebehind_servers: Servers) -> Iterator[Stack]:
    """A :class:`Stack` for this test alone, with a running worker."""
    from .testing.stack import stack_on  # noqa: PLC0415

    with stack_on(writebehind_servers) as stack:
        yield stack
