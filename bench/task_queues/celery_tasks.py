"""Celery, with its defaults: it forgets a task when it begins with it."""

from __future__ import annotations

import sys

from celery import Celery

from .write import REDIS_URL, write

app = Celery("bench", broker=REDIS_URL)
app.conf.broker_connection_retry_on_startup = True
task = app.task(write, name="write", ignore_result=True)

if __name__ == "__main__":
    for line in sys.stdin:
        task.delay(line)
