"""Learner ranks: a policy model in a DeepSpeed ZeRO engine."""
