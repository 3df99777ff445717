"""The endpoint of a worker that is not there: what it shows is what the test tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from writebehind_worker.course import Course
from writebehind_worker.endpoint import Endpoint
from writebehind_worker.metrics import Metrics
from writebehind_worker.overview import Overview, overview
from writebehind_worker.state import WorkerState


class Told:
    """Of an owner, ``host:1``, to which all is well at first."""

    def __init__(self, queue: str = "db:write:queue") -> None:
        self.metrics, self.state, self.course = Metrics(queue), WorkerState(), Course()
        self.state.redis_is(True)
        self.state.postgres_is(True)
        self.state.role_is("owner", 3, "host:1")
        self.metrics.lease_is(True)
        self.metrics.redis_risks_are(())
        self.metrics.queue_is(0, 0, 0, 0)
        self.metrics.dead_letters_are({})

    def overview(self) -> Overview:
        return overview(self.metrics, self.state, self.course)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address."""
        endpoint = Endpoint("127.0.0.1", 0, self.metrics, self.state, self.course)
        endpoint.start()
        try:
            yield f"http://127.0.0.1:{endpoint.port}"
        finally:
            endpoint.stop()
