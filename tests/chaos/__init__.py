"""Chaos: producers, workers and both servers under faults drawn from a seed, and a check of what came of it.

Run by ``make chaos``; described in docs/chaos.md.
"""
