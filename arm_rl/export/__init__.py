"""Export of checkpoints as Hugging Face folders, with a model card and the judge's settings."""
