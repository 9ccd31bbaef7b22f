"""Retrieval of document pages from an embedded index."""
