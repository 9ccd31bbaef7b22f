"""The Python executor and its sandbox."""
