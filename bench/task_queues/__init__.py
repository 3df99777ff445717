"""Task queues that people bend to this job, a task a write. Each runs in a virtual environment of its own.

What is in this folder runs there, without the product; BENCH_REDIS_URL and BENCH_POSTGRES_URL say where.
"""
