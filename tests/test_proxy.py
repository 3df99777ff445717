"""The proxy does to a client what its methods say."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from writebehind_worker.testing.proxy import Proxy, proxied_url
from writebehind_worker.testing.wait import wait_until


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy.to(redis_url) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: Proxy, redis_url: str) -> Iterator[redis.Redis]:
    """A client behind the proxy that gives up at once."""
    url = proxied_url(redis_url, proxy.port)
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5) as client:
        yield client


def test_a_dropped_reply_was_executed_and_the_client_sees_a_broken_connection(
    proxy: Proxy, behind: redis.Redis, redis_client: redis.Redis, queue: str
) -> None:
    proxy.drop_reply_after(lambda chunk: b"INCR" in chunk)
    with pytest.raises(redis.ConnectionError):
        behind.incr(queue)
    proxy.wait_for_drops()
    assert redis_client.get(queue) == b"1"
    assert behind.incr(queue) == 2
    assert proxy.dropped == 1


def test_a_dropped_request_was_not_executed(
    proxy: Proxy, behind: redis.Redis, redis_client: redis.Redis, queue: str
) -> None:
    proxy.drop_request_matching(lambda chunk: b"INCR" in chunk, times=2)
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            behind.incr(queue)
    assert redis_client.get(queue) is None
    assert behind.incr(queue) == 1
    assert proxy.dropped == 2


def test_refused_clients_come_back_when_accepted_again(proxy: Proxy, behind: redis.Redis) -> None:
    behind.ping()
    proxy.refuse()
    behind.ping()
    proxy.drop_connections()
    with pytest.raises(redis.ConnectionError):
        behind.ping()
    proxy.accept()
    assert wait_until(behind.ping, message="the client did not come back")


def test_a_paused_connection_says_nothing_until_resumed(
    proxy: Proxy, redis_url: str, redis_client: redis.Redis, queue: str
) -> None:
    url = proxied_url(redis_url, proxy.port)
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=0.7) as client:
        client.ping()
        proxy.pause()
        with pytest.raises(redis.TimeoutError):
            client.incr(queue)
        assert redis_client.get(queue) is None
        proxy.resume()
        wait_until(lambda: redis_client.get(queue) == b"1", message="what was held did not arrive")


def test_a_commit_whose_reply_is_lost_is_in_postgres(postgres_url: str, pg: psycopg.Connection) -> None:
    pg.execute("CREATE TABLE t (x int)")
    with Proxy.to(postgres_url) as proxy:
        connection = psycopg.connect(proxied_url(postgres_url, proxy.port))
        connection.execute("INSERT INTO t VALUES (1)")
        proxy.drop_reply_after(lambda chunk: b"COMMIT" in chunk)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        connection.close()
        proxy.wait_for_drops()
    assert pg.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_a_prepared_commit_is_known_by_its_reply(postgres_url: str, pg: psycopg.Connection) -> None:
    pg.execute("CREATE TABLE t (x int)")
    with Proxy.to(postgres_url) as proxy:
        connection = psycopg.connect(proxied_url(postgres_url, proxy.port), autocommit=True)
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (1)")
        proxy.drop_reply_matching(lambda chunk: b"COMMIT" in chunk)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("COMMIT", prepare=True)
        connection.close()
        proxy.wait_for_drops()
    assert pg.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_a_url_keeps_its_account_database_and_options() -> None:
    assert proxied_url("redis://:pw@host:1/2?a=b", 9) == "redis://:pw@127.0.0.1:9/2?a=b"
    assert proxied_url("postgresql://postgres@h/db", 9) == "postgresql://postgres@127.0.0.1:9/db"
