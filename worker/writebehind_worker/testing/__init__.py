"""Servers, workers and faults for tests: what `writebehind_worker.pytest_plugin` gives, and our own tests use."""
