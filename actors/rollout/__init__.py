"""Rollout actors: the vLLM engine, the sessions that share it, and the pool of all actors."""
