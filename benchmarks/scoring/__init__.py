"""Scoring speed beside its peers: `python -m benchmarks.scoring`, or `make bench-score`."""
