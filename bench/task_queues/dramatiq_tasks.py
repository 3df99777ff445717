"""Dramatiq, with its defaults."""

from __future__ import annotations

import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from .write import REDIS_URL, write

dramatiq.set_broker(RedisBroker(url=REDIS_URL))
task = dramatiq.actor(write, actor_name="write")

if __name__ == "__main__":
    for line in sys.stdin:
        task.send(line)
