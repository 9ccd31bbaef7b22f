"""Checkers of instructions on texts: lengths, substrings, keywords and numbers."""
