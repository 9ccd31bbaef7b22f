"""Benchmarks of speed, the findings on reward designs, and fault injection."""
