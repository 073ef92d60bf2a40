"""Benchmarks of the operators: `python -m bench` (or `make bench`) prints the table of ratios."""
