"""Execution of tool calls: inline, in threads or in worker processes."""
