"""URLs of Redis: one server, sentinels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from writebehind import AsyncWriteBehind, WriteBehind
from writebehind.address import connect, read_address
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


@pytest.mark.parametrize("url", ["redis+cluster://:secret@a:7000,b", "rediss+cluster://a"])
def test_a_cluster_is_refused_in_words(url: str) -> None:
    for attempt in (read_address, WriteBehind.from_url, AsyncWriteBehind.from_url):
        with pytest.raises(ValueError, match="Redis Cluster cannot be used"):
            attempt(url)
    with pytest.raises(ConfigError, match="no Redis Cluster"):
        Config(redis_url=url)


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
        "redis+cluster://h",
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
