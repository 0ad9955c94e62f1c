"""The sides of `benchmarks/rollout.py`, and what they play with."""
