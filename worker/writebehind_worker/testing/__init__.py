"""Servers, workers and faults for tests: what the pytest plugin gives, and our own tests use."""
