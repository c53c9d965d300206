"""Measured claims: one script each, run as `python -m benchmarks.NAME`, whose last printed line is one JSON object."""
