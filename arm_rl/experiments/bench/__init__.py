"""Benchmarks: what runs side by side in one run, as rates and ratios with their spread."""
