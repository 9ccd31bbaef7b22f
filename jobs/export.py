"""Writes a Hugging Face folder from a run's checkpoint: `python -m jobs.export RUN OUT`."""
