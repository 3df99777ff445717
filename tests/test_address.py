"""URLs of Redis: one server, sentinels, a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind import AsyncWriteBehind, WriteBehind
from writebehind.address import connect, connect_async, read_address
from writebehind_worker.config import Config
from writebehind_worker.errors import ConfigError
from writebehind_worker.redis_server import longest_silence_s, timeouts


def test_sentinels_are_hosts_a_service_and_a_database() -> None:
    address = read_address(
        "redis+sentinel://ada:p%40ss@a,b:1,[::1]:2/main/3?socket_timeout=2&sentinel_password=x"
    )
    assert address.kind == "sentinel"
    assert address.hosts == (("a", 26379), ("b", 1), ("::1", 2))
    assert address.service == "main"
    assert address.options == {"username": "ada", "password": "p@ss", "db": 3, "socket_timeout": 2.0}
    assert address.sentinel_options == {"password": "x"}
    assert not address.tls


def test_a_cluster_is_hosts() -> None:
    address = read_address("rediss+cluster://ada:p%40ss@a:7000,[::1]/0?socket_timeout=2&ssl_cert_reqs=none")
    assert address.kind == "cluster"
    assert address.hosts == (("a", 7000), ("::1", 6379))
    assert address.options == {
        "username": "ada", "password": "p@ss", "socket_timeout": 2.0, "ssl_cert_reqs": "none"
    }  # fmt: skip
    assert address.tls
    assert address.asks_first == 2
    assert not read_address("redis+cluster://a").tls


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://h",
        "redis+sentinel://h/",
        "redis+sentinel:///main",
        "redis+sentinel://h:port/main",
        "redis+sentinel://h:99999/main",
        "redis+sentinel://h,,i/main",
        "redis+sentinel://h/main/two",
        "redis+sentinel://h/main?socket_timeout=soon",
        "redis+cluster://h/1",
        "redis+cluster://h?db=1",
        "redis+cluster://h/service",
        "redis+cluster://",
        "redis+other://h",
        "http://h",
    ],
)
def test_what_is_no_address_is_refused_and_no_password_shown(url: str) -> None:
    url = url.replace("://", "://ada:hunter2@", 1)
    with pytest.raises(ValueError) as caught:
        read_address(url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as refused:
        Config(redis_url=url)
    assert "hunter2" not in str(refused.value) + refused.value.hint
    with pytest.raises(ValueError):
        connect(url, {})


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://h/0?bogus=1", "bogus"),
        ("redis://h/0?ssl_ca_certs=f", "ssl_ca_certs"),
        ("redis://h?retry=3", "retry"),
        ("rediss://h?bogus=1", "bogus"),
        ("unix:///s?socket_keepalive=1", "socket_keepalive"),
        ("redis+sentinel://h/main?bogus=1", "bogus"),
        ("redis+cluster://h?bogus=1", "bogus"),
        ("redis+cluster://h?sentinel_password=x", "sentinel_password"),
        ("redis+sentinel://h/main?sentinel_bogus=1&sentinel_password=hunter2", "sentinel_bogus"),
    ],
)
def test_an_unknown_option_is_named_before_it_is_used(url: str, name: str) -> None:
    for attempt in (read_address, WriteBehind.from_url, AsyncWriteBehind.from_url):
        with pytest.raises(ValueError, match=rf": {name}$"):
            attempt(url)
    with pytest.raises(ConfigError, match=rf": {name}") as refused:
        Config(redis_url=url)
    assert "hunter2" not in str(refused.value) + refused.value.hint


@pytest.mark.parametrize(
    "url", ["redis://ada:hun?ter2=x@h", "redis://ada:1?ter2=x@h", "redis://ada:ter2\u2100@h", "redis://[ter2"]
)
def test_a_piece_of_a_password_is_not_shown_whatever_is_wrong(url: str) -> None:
    for attempt in (read_address, WriteBehind.from_url, AsyncWriteBehind.from_url):
        with pytest.raises(ValueError) as caught:
            attempt(url)
        assert "hun" not in str(caught.value) and "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h?db=1&socket_timeout=1&socket_connect_timeout=1&socket_keepalive=1&max_connections=9"
        "&health_check_interval=3&client_name=me&protocol=3&username=u&password=p&retry_on_timeout=1",
        "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=f&ssl_check_hostname=0&ssl_keyfile=f&ssl_certfile=f",
        "unix:///s?db=1&password=p&socket_timeout=1",
        "redis+sentinel://h/main?socket_read_size=9&client_name=me&sentinel_username=u&sentinel_password=p",
        "rediss+sentinel://h/main?ssl_cert_reqs=none&sentinel_ssl_cert_reqs=none&sentinel_socket_timeout=1",
    ],
)
def test_a_connection_can_be_made_with_each_option_that_is_known(url: str) -> None:
    Config(redis_url=url)
    pools: list[Any] = [connect(url, {}).connection_pool, connect_async(url, {}).connection_pool]
    for pool in pools:
        given = {n: v for n, v in pool.connection_kwargs.items() if n != "connection_pool"}
        extra = {"connection_pool": pool} if "sentinel" in url else {}
        assert pool.connection_class(**given, **extra)


@pytest.mark.parametrize("url", ["redis+other://:hunter2@h", "http://h", "h:6379", ""])
def test_who_takes_another_scheme_hears_of_all_that_there_are(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis://.*unix://.*redis\+sentinel://") as caught:
        connect(url, {})
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40), st.sampled_from(["redis+sentinel://", "redis+cluster://", "redis://", ""]))
def test_any_text_is_an_address_or_refused(text: str, scheme: str) -> None:
    try:
        address = read_address(scheme + text)
    except ValueError:
        return
    assert address.kind == "single" or (address.hosts and all(host for host, _ in address.hosts))


def test_each_sentinel_may_be_silent_for_a_while() -> None:
    one, sentinels = "redis://h?socket_timeout=1", "redis+sentinel://h,i,j/main?socket_timeout=1"
    assert timeouts(sentinels) == timeouts(one)
    assert longest_silence_s(sentinels) == 4 * longest_silence_s(one)
