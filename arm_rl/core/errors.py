"""Errors that several parts must tell apart: those that a user can mend, batches that must not be learned from, an engine that is gone."""


class UserError(ValueError):
    """Something that the user gave cannot be used: the message says what, where, and what would be right. Shown without a traceback."""


class BadBatch(ValueError):
    """A batch that must not change the weights: they are as they were."""


class NonFiniteError(BadBatch):
    """A loss, a gradient, a log-probability or an advantage that is not finite."""


class MismatchError(BadBatch):
    """Engine and learner do not agree on how likely the sampled tokens are: one of them has other weights, or another context."""


class EngineDied(RuntimeError):
    """The engine's process is gone: what ran in it is lost, and another engine has to be started."""
