"""What the tests share: real servers, a proxy that breaks connections, waiting for a condition."""

import functools

import redis.utils

# Newer versions of redis-py look up their own version on disk for each connection: 2 ms, thousands of times.
redis.utils.get_lib_version = functools.cache(redis.utils.get_lib_version)
