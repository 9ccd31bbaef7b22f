"""Training data: parquet rows, samples, streaming order, demonstrations and stored images."""
