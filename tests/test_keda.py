"""The ScaledObject of deploy/kubernetes/overlays/keda: what it asks for, and as whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError
from tests.support.kubernetes import KUBERNETES, Object, configuration, namespace, render, the

from writebehind.keys import DEFAULT_QUEUE, QueueKeys
from writebehind_worker.metrics import Metrics

# Type of a trigger → its parameters that are used here, and those that it cannot do without; of KEDA 2.21.
KEDA_PARAMETERS = {
    "redis": ({"listName", "listLength", "activationListLength"}, {"listName"}),
    "prometheus": (
        {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"},
        {"serverAddress", "query", "threshold"},
    ),
}
KEDA_SCRIPT = """
local kind = redis.call('type', KEYS[1]).ok
if kind == 'list' or kind == 'none' then return redis.call('llen', KEYS[1]) end
return redis.error_reply('ERR unsupported key type')
"""


# KEDA.


def triggers() -> dict[str, Object]:
    return {t["name"]: t for t in the("ScaledObject", render("overlays/keda"))["spec"]["triggers"]}


def test_keda_alone_sets_the_number_of_workers() -> None:
    objects = render("overlays/keda")
    scaled = the("ScaledObject", objects)["spec"]
    found = the("Deployment", objects)
    assert "replicas" not in found["spec"]
    target = {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": found["metadata"]["name"]}
    assert scaled["scaleTargetRef"] == target
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 2)


def test_keda_is_told_what_it_knows() -> None:
    for trigger in triggers().values():
        known, needed = KEDA_PARAMETERS[trigger["type"]]
        assert needed <= trigger["metadata"].keys() <= known
        for name, value in trigger["metadata"].items():
            if name.lower().endswith(("length", "threshold")):
                assert int(value) >= 0
    authentication = the("TriggerAuthentication", render("overlays/keda"))
    parameters = {ref["parameter"] for ref in authentication["spec"]["secretTargetRef"]}
    assert parameters == {"address", "username", "password"}
    for trigger in triggers().values():
        names = [trigger.get("authenticationRef", {}).get("name")]
        assert names == ([authentication["metadata"]["name"]] if trigger["type"] == "redis" else [None])


def test_keda_asks_for_what_the_worker_calls_so(tmp_path: Path) -> None:
    queue = configuration(tmp_path)["queue"]
    keys = QueueKeys(queue)
    found = triggers()
    assert queue == DEFAULT_QUEUE
    assert found["queue"]["metadata"]["listName"] == keys.queue
    assert found["frozen"]["metadata"]["listName"] == keys.inflight
    metrics = Metrics(queue)
    metrics.flushed("users", "applied", 1)
    shown = metrics.text().decode()
    for name in ("oldest-age", "settled"):
        query = found[name]["metadata"]["query"]
        (metric, labels) = re.findall(r"(writebehind_\w+)\{(.*?)\}", query)[0]
        assert re.search(rf'^{metric}\{{.*queue="{queue}"', shown, re.MULTILINE), "no such metric"
        assert labels == f'namespace="{namespace()["metadata"]["name"]}",queue="{queue}"'
    assert "writebehind_oldest_age_seconds" in found["oldest-age"]["metadata"]["query"]


@pytest.mark.parametrize(
    ("waiting", "frozen", "age_s", "settled", "workers"),
    [
        (0, 0, 0, 0, 0),
        (1, 0, 0, 0, 1),  # woken
        (10_000_000, 0, 0, 0, 1),  # a second one would not drain it faster
        (0, 1, 0, 0, 1),  # left behind by a worker that was stopped
        (0, 0, 0, 5, 1),  # a trickle
        (5_000, 48, 20, 100, 1),
        (5_000, 48, 31, 100, 2),  # a standby
        (10_000_000, 48, 86_400, 0, 2),  # never a third
    ],
)
def test_how_many_workers_keda_asks_for(
    waiting: int, frozen: int, age_s: int, settled: int, workers: int
) -> None:
    scaled = the("ScaledObject", render("overlays/keda"))["spec"]
    values = {"queue": waiting, "frozen": frozen, "oldest-age": age_s, "settled": settled}
    assert _workers(scaled, values) == workers


def _workers(scaled: Object, values: dict[str, int]) -> int:
    """KEDA wakes if a trigger is above its activation; the largest ceil(value / target) is wanted then."""
    is_active, wanted = False, 1
    for trigger in scaled["triggers"]:
        told, value = trigger["metadata"], values[trigger["name"]]
        is_redis = trigger["type"] == "redis"
        is_active |= value > int(told["activationListLength" if is_redis else "activationThreshold"])
        wanted = max(wanted, -(-value // int(told["listLength" if is_redis else "threshold"])))
    return min(wanted, scaled["maxReplicaCount"]) if is_active else int(scaled["minReplicaCount"])


@pytest.fixture
def keda_user(redis_client: Redis, redis_url: str, queue: str) -> Iterator[Redis]:
    """A client as the user of overlays/keda/redis-acl.conf, for this test's queue."""
    text = (KUBERNETES / "overlays" / "keda" / "redis-acl.conf").read_text(encoding="utf-8")
    text = text.replace(DEFAULT_QUEUE, queue)
    (line,) = re.findall(r"^user (.+)$", text, re.MULTILINE)
    name, *rules = re.findall(r"\([^)]*\)|\S+", line)
    redis_client.execute_command("ACL", "SETUSER", name, *rules)  # type: ignore[no-untyped-call]
    server = urlsplit(redis_url)
    own = server._replace(netloc=f"{name}:change-me-keda@{server.hostname}:{server.port}")
    with Redis.from_url(own.geturl()) as client:
        yield client
    redis_client.acl_deluser(name)


def test_kedas_user_may_count_and_nothing_else(keda_user: Redis, redis_client: Redis, queue: str) -> None:
    keys = QueueKeys(queue)
    redis_client.lpush(keys.queue, b"x")
    assert keda_user.ping()
    assert keda_user.eval(KEDA_SCRIPT, 1, keys.queue) == 1
    assert keda_user.eval(KEDA_SCRIPT, 1, keys.inflight) == 0
    with pytest.raises(NoPermissionError):
        keda_user.lrange(keys.queue, 0, -1)
    with pytest.raises(ResponseError, match="permission"):
        keda_user.eval("return redis.call('lpop', KEYS[1])", 1, keys.queue)
    with pytest.raises(ResponseError, match="permission"):
        keda_user.eval(KEDA_SCRIPT, 1, keys.lease)
