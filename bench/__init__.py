"""How fast: the product against its rivals on servers of its own; ``make bench``, see docs/benchmarks.md."""
