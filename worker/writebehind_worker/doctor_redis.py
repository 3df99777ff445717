"""What `writebehind doctor` finds in Redis: rules on what the server tells of itself, and the asking."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from writebehind.keys import QueueKeys

from .config import Config, one_line, redacted
from .doctor import ClockReading, Finding, duration, names, size
from .doctor_cluster import ClusterFacts, cluster_finding, read_cluster
from .doctor_division import examine_division
from .errors import FatalError
from .nodes import REDIS_ERRORS
from .redis_rights import may_publish, missing
from .redis_server import (
    RedisLink,
    cluster_error,
    endless_timeouts,
    eviction_error,
    is_replica,
    redis_risks,
    version_error,
)
from .shard_clocks import NODE_TIMEOUT_S
from .tenure import BLOCK_S, TOUCH_EVERY_S

_ASKED = ("appendfsync", "save", "timeout", "min-replicas-to-write")
_MEMORY_SHARE, _MEMORY_SHARE_WORSE = 0.75, 0.9
_CLIENTS_SHARE = 0.9
_LAG_S = 10  # of a replica that is well: the default of min-replicas-max-lag
_RIGHTS_REMEDY = "give it the line of writebehind-worker in deploy/redis-acl.conf"


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a server tells. ``told`` is its configuration as far as CONFIG GET may be asked for it.

    ``missing`` are the commands that the user may not run, ``may_publish`` is whether it may tell of
    changes; None: it could not be found out.
    ``socket_timeout_s`` is our own.
    """

    info: Mapping[str, Any]
    told: Mapping[str, str]
    missing: list[str] | None
    socket_timeout_s: float
    clock: ClockReading | None = None
    may_publish: bool | None = None
    cluster: ClusterFacts | None = None


def examine_redis(
    config: Config, clock: Callable[[], float] = time.time, counts: Collection[int] = ()
) -> tuple[list[Finding], ClockReading | None]:
    """Asks the server, some seconds at most. Raises nothing if it does not answer.

    ``counts``: numbers of shards that the ledger knows of.
    """
    where, keys = redacted(config.redis_url), QueueKeys(config.queue)
    try:
        with RedisLink(config.redis_url, config.queue) as link, ExitStack() as stack:
            facts, whole = _read(link.client, keys, clock), link.client
            if link.is_clustered:
                hasty = RedisLink(config.redis_url, at_most_s=NODE_TIMEOUT_S)
                whole = stack.enter_context(hasty).client
                facts = replace(facts, cluster=read_cluster(whole))
            division = examine_division(whole, keys, counts)
    except NoPermissionError as error:
        what = f"the user of {where} may not ask for INFO, and the worker must: {one_line(error)}"
        return [Finding("redis.rights", "fatal", what, _RIGHTS_REMEDY)], None
    except (*REDIS_ERRORS, OSError) as error:
        remedy = "check --redis-url, its user and password, and that the server runs"
        return [Finding("redis.connection", "fatal", f"{where}: {one_line(error)}", remedy)], None
    answered = Finding("redis.connection", "ok", f"{where} answers")
    return [answered, *redis_findings(facts, config), division], facts.clock


def redis_findings(facts: RedisFacts, config: Config) -> Iterator[Finding]:
    """All rules, on what a server has told."""
    info, where = facts.info, redacted(config.redis_url)
    yield _refusal("redis.version", version_error(info, where)) or Finding(
        "redis.version", "ok", _version(info)
    )
    if facts.cluster is not None:
        yield cluster_finding(facts.cluster, config)
    else:
        yield _refusal("redis.cluster", cluster_error(info, where)) or Finding(
            "redis.cluster", "ok", "no Redis Cluster"
        )
    yield _role(info)
    yield _rights(facts.missing)
    yield _changes(facts.may_publish, config)
    yield _eviction(info, config, where)
    yield _persistence(info, facts.told)
    yield _appendfsync(info, facts.told)
    yield _write_errors(info)
    yield _memory(info)
    yield _replicas(info, facts.told)
    yield _clients(info)
    yield _timeout(facts.told)
    yield _socket_timeout(facts.socket_timeout_s, endless_timeouts(config.redis_url))


def _read(client: Redis, keys: QueueKeys, clock: Callable[[], float]) -> RedisFacts:
    info: dict[str, Any] = client.info()
    told: dict[str, str] = {}
    reading: ClockReading | None = None
    with suppress(ResponseError):  # refused to this user, or switched off
        told = cast(dict[str, str], client.config_get(*_ASKED))
    try:
        lacking: list[str] | None = missing(client, keys)
    except NoPermissionError as error:
        lacking = [f"EVAL ({one_line(error)})"]
    except ResponseError:  # too old for the question
        lacking = None
    publishes: bool | None = None
    with suppress(ResponseError):
        publishes = may_publish(client, keys)
    with suppress(ResponseError):
        reading = min((_clock(client, clock) for _ in range(3)), key=lambda r: r.error_s)
    timeout_s = client.connection_pool.connection_kwargs["socket_timeout"]
    return RedisFacts(info, told, lacking, timeout_s, reading, publishes)


def _clock(client: Redis, clock: Callable[[], float]) -> ClockReading:
    before = clock()
    seconds, micros = client.time()
    after = clock()
    return ClockReading(seconds + micros / 1e6 - (before + after) / 2, (after - before) / 2)


def _refusal(check: Any, error: FatalError | None) -> Finding | None:
    """What `run` refuses to start for."""
    return None if error is None else Finding(check, "fatal", str(error), error.hint)


def _version(info: Mapping[str, Any]) -> str:
    valkey = info.get("valkey_version")
    return f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '(version not told)')}"


def _role(info: Mapping[str, Any]) -> Finding:
    if is_replica(info):
        return Finding(
            "redis.role",
            "fatal",
            f"it is a replica of {info.get('master_host')}:{info.get('master_port')} and takes no writes; "
            "`run` waits until it is promoted",
            "point --redis-url at the primary, or promote this one (REPLICAOF NO ONE)",
        )
    return Finding("redis.role", "ok", "a primary")


def _rights(lacking: list[str] | None) -> Finding:
    if lacking is None:
        return Finding("redis.rights", "note", "not told: this server cannot be asked for a user's rights")
    if lacking:
        return Finding(
            "redis.rights", "fatal", f"the user may not run {names(lacking)}; the worker must", _RIGHTS_REMEDY
        )
    return Finding(
        "redis.rights",
        "ok",
        "the user may run what the worker needs on the queue's keys (those of the cache are not checked: "
        "their "
        "prefix is the producers')",
    )


def _changes(may_publish: bool | None, config: Config) -> Finding:
    channel = QueueKeys(config.queue).changes
    if not config.publish_changes:
        return Finding("redis.changes", "ok", "changes are not published (publish_changes is off)")
    if may_publish is None:
        return Finding(
            "redis.changes", "note", "not told: this server cannot be asked whether the user may publish"
        )
    if may_publish:
        return Finding("redis.changes", "ok", f"the user may publish changes to {channel}")
    return Finding(
        "redis.changes",
        "warning",
        f"the user may not publish to {channel}: who listens hears of no change (the worker flushes all the "
        "same)",
        "give it what deploy/redis-acl.conf has for publish_changes, or leave --publish-changes out",
    )


def _eviction(info: Mapping[str, Any], config: Config, where: str) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy is None:
        return Finding("redis.eviction", "note", "not told: the server keeps its maxmemory-policy to itself")
    error = eviction_error(info, where)
    if error is not None and not config.allow_eviction:
        return Finding("redis.eviction", "fatal", str(error), error.hint)
    if error is not None:
        return Finding(
            "redis.eviction",
            "warning",
            f"maxmemory-policy {policy}: when full, Redis evicts the queue itself; --allow-eviction "
            "accepts it",
            "set maxmemory-policy to noeviction or volatile-ttl",
        )
    kept = "nothing is evicted" if policy == "noeviction" else "only keys with a TTL are evicted"
    return Finding("redis.eviction", "ok", f"maxmemory-policy {policy}: {kept}; what waits has no TTL")


def _persistence(info: Mapping[str, Any], told: Mapping[str, str]) -> Finding:
    if "aof_enabled" not in info:
        return Finding(
            "redis.persistence", "note", "not told: the server does not say whether it keeps an AOF"
        )
    if "persistence" not in redis_risks(info):
        return Finding("redis.persistence", "ok", "an AOF is kept: a restart brings back what it holds")
    if told.get("save") == "":
        loss = "it keeps no snapshots either: a restart loses every write that is not in Postgres yet"
    else:
        changes = info.get("rdb_changes_since_last_save", "some")
        loss = f"a restart loses what came after the last snapshot, {changes} changes by now"
    return Finding(
        "redis.persistence",
        "warning",
        f"no AOF is kept (appendonly no): {loss}",
        "CONFIG SET appendonly yes, and the same in its configuration file",
    )


def _appendfsync(info: Mapping[str, Any], told: Mapping[str, str]) -> Finding:
    how = told.get("appendfsync")
    if info.get("aof_enabled") == 0:
        return Finding("redis.appendfsync", "note", "of no account: no AOF is kept")
    if how is None:
        return Finding(
            "redis.appendfsync", "note", "not told: this user may not ask for it (CONFIG GET appendfsync)"
        )
    if how == "always":
        return Finding("redis.appendfsync", "ok", "always: what is acknowledged is on disk")
    if how == "everysec":
        return Finding(
            "redis.appendfsync",
            "note",
            "everysec: a crash of the host loses up to a second of acknowledged writes; a producer may ask "
            "for "
            "more, write by write (WAITAOF), and `always` asks for all",
        )
    return Finding(
        "redis.appendfsync",
        "warning",
        f"{how}: the host's kernel decides when it goes to disk; its crash loses half a minute of writes, "
        "say",
        "CONFIG SET appendfsync everysec (or always), and the same in its configuration file",
    )


def _write_errors(info: Mapping[str, Any]) -> Finding:
    if "write_error" not in redis_risks(info):
        return Finding("redis.write_errors", "ok", "it could write its files, the last time")
    which = "AOF" if info.get("aof_last_write_status") == "err" else "snapshot"
    return Finding(
        "redis.write_errors",
        "warning",
        f"it could not write its {which}, the last time: a restart loses what is not on disk, and Redis "
        "may refuse "
        "all writes meanwhile, the worker's too (MISCONF)",
        "see its log: its disk is full or read-only, mostly. Mend that, then BGSAVE",
    )


def _memory(info: Mapping[str, Any]) -> Finding:
    used, most, host = info.get("used_memory"), info.get("maxmemory"), info.get("total_system_memory")
    if used is None or most is None:
        return Finding("redis.memory", "note", "not told: the server keeps its memory to itself")
    if most and used <= most * _MEMORY_SHARE:
        return Finding("redis.memory", "ok", f"{size(used)} of maxmemory {size(most)} are used")
    if most:
        soon = "soon" if used > most * _MEMORY_SHARE_WORSE else "when it is full"
        return Finding(
            "redis.memory",
            "warning",
            f"{used / most:.0%} of maxmemory ({size(used)} of {size(most)}) are used: {soon} producers are "
            "refused (RedisFull); the worker goes on draining",
            "raise maxmemory, shorten the cache's ttl, or see by `writebehind status` why the queue is long",
        )
    if not host:
        return Finding("redis.memory", "note", f"{size(used)} are used, without a limit (maxmemory 0)")
    share = f"{size(used)} of the host's {size(host)} are used, without a limit (maxmemory 0)"
    if used <= host * _MEMORY_SHARE:
        return Finding(
            "redis.memory", "note", f"{share}: a full host ends Redis instead of refusing producers"
        )
    return Finding(
        "redis.memory",
        "warning",
        f"{share}: the kernel may end Redis at any time",
        "set maxmemory below what the host can spare, with maxmemory-policy noeviction or volatile-ttl",
    )


def _replicas(info: Mapping[str, Any], told: Mapping[str, str]) -> Finding:
    if is_replica(info):
        return Finding("redis.replicas", "note", "of no account: it is a replica itself")
    least, good = told.get("min-replicas-to-write"), info.get("min_slaves_good_slaves")
    if good is not None and good < int(least or 1):
        return Finding(
            "redis.replicas",
            "fatal",
            f"min-replicas-to-write is {least or 'set'}, and {good} replicas are well: Redis refuses every "
            "write, "
            "the worker's too (NOREPLICAS)",
            "bring the replicas back, or lower min-replicas-to-write",
        )
    count = info.get("connected_slaves", 0)
    if not count:
        return Finding(
            "redis.replicas", "note", "no replica: with its disk is lost what is not in Postgres yet"
        )
    attached = [info[f"slave{i}"] for i in range(count) if isinstance(info.get(f"slave{i}"), dict)]
    ill = [_replica(r) for r in attached if r.get("state") != "online" or int(r.get("lag", 0)) > _LAG_S]
    if ill:
        return Finding(
            "redis.replicas",
            "warning",
            f"{len(ill)} of {count} replicas are behind: {names(ill)}; a failover to one loses what it has "
            "not got",
            "see the replica's log, and the network between them",
        )
    if least not in (None, "0") or good is not None:
        return Finding("redis.replicas", "ok", f"{count} online; writes need {least or 'some'} of them")
    return Finding(
        "redis.replicas",
        "note",
        f"{count} online, asynchronous: a failover loses what has not been replicated. "
        "min-replicas-to-write 1 "
        "bounds that; a producer may ask for more, write by write (WAIT)",
    )


def _replica(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts.get('ip')}:{facts.get('port')} ({facts.get('state')}, silent for {facts.get('lag', '?')} s)"
    )


def _clients(info: Mapping[str, Any]) -> Finding:
    count, most = info.get("connected_clients"), info.get("maxclients")
    if count is None or not most:
        return Finding("redis.clients", "note", "not told: the server does not say how many clients it takes")
    if count > most * _CLIENTS_SHARE:
        return Finding(
            "redis.clients",
            "warning",
            f"{count} of {most} clients are connected: the next worker or producer may be turned away",
            "raise maxclients, or find in CLIENT LIST who holds so many",
        )
    return Finding("redis.clients", "ok", f"{count} of {most} clients are connected")


def _timeout(told: Mapping[str, str]) -> Finding:
    if "timeout" not in told:
        return Finding("redis.timeout", "note", "not told: this user may not ask for it (CONFIG GET timeout)")
    timeout_s, least_s = int(told["timeout"]), TOUCH_EVERY_S + BLOCK_S
    if timeout_s == 0:
        return Finding("redis.timeout", "ok", "0: silent connections stay open")
    if timeout_s > least_s:
        return Finding(
            "redis.timeout", "ok", f"{timeout_s} s; an idle worker is silent for {least_s:g} s at most"
        )
    return Finding(
        "redis.timeout",
        "warning",
        f"Redis closes connections that are silent for {timeout_s} s, and an idle worker's are for "
        f"{least_s:g} s: "
        "it loses its ownership and begins again, over and over",
        f"CONFIG SET timeout 0, or more than {least_s:g}; and the same in its configuration file",
    )


def _socket_timeout(timeout_s: float, endless: Sequence[str]) -> Finding:
    if endless:
        return Finding(
            "redis.socket_timeout",
            "warning",
            f"{names(endless)} of --redis-url would wait without end; the worker waits 5 s",
            "leave it out of --redis-url, or set it to some seconds",
        )
    if timeout_s > BLOCK_S:
        return Finding(
            "redis.socket_timeout",
            "ok",
            f"answers are waited for {duration(timeout_s)}; the worker blocks for {BLOCK_S:g} s",
        )
    return Finding(
        "redis.socket_timeout",
        "warning",
        f"--redis-url waits {duration(timeout_s)} for an answer, and an idle worker blocks for {BLOCK_S:g} "
        "s: it "
        "takes the server for dead and begins again, over and over",
        "leave socket_timeout out of --redis-url (it is 5 s then), or make it longer than the block",
    )
