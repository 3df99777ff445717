"""RQ, with its default worker, which forks for each task."""

from __future__ import annotations

import sys

from redis import Redis
from rq import Queue

from .write import REDIS_URL

if __name__ == "__main__":
    queue = Queue("bench", connection=Redis.from_url(REDIS_URL))
    for line in sys.stdin:
        queue.enqueue("bench.task_queues.write.write", line)
