"""What an orchestrator sees: readiness while the lease changes hands, and how fast it does."""

from __future__ import annotations

import time
from typing import Any

import pytest
from redis import Redis
from tests.support.workers import RunningWorker

from writebehind.keys import QueueKeys
from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until

LEASE_TTL_S = 60.0  # far longer than any of these tests


@pytest.fixture
def options(options: dict[str, Any]) -> dict[str, Any]:
    return options | {"lease_ttl_s": LEASE_TTL_S}


def test_a_rolling_update_does_not_wait_for_the_lease(options: dict[str, Any]) -> None:
    """The new worker is ready beside the old one, which then hands over at once."""
    with RunningWorker(**options) as old:
        owner = old.wait_for_role("owner")["owner"]
        with RunningWorker(**options) as new:
            assert new.wait_for_role("standby")["owner"] == owner
            assert new.state.readiness()[0]
            began = time.monotonic()
            old.stop()
            new.wait_for_role("owner")
            assert time.monotonic() - began < LEASE_TTL_S / 4
            assert not old.state.readiness()[0]
            assert new.state.readiness()[0]


def test_a_worker_that_lost_redis_does_not_claim_to_know_who_holds_the_lease(
    options: dict[str, Any], redis_client: Redis, queue: str
) -> None:
    with Proxy.to(options["redis_url"]) as way:
        options["redis_url"] = proxied_url(options["redis_url"], way.port)
        with RunningWorker(**options) as worker:
            worker.wait_for_role("owner")
            way.refuse()
            way.drop_connections()
            worker.wait_for_role("starting")
            wait_until(lambda: not worker.facts["redis_up"])
            ready, facts = worker.state.readiness()
            assert (ready, facts["owner"], facts["epoch"]) == (False, None, None)
            assert "the worker is starting: who holds the lease is not known" in facts["reasons"]
            assert worker.state.health()[0], "a restart would not help"
            redis_client.delete(QueueKeys(queue).lease)  # else it had to run out
            way.accept()
            worker.wait_for_role("owner")
            assert worker.state.readiness()[0]
