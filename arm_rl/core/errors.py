"""Errors that have a name of their own: those that a user can mend, and batches that must not be learned from."""


class UserError(ValueError):
    """Something that the user gave cannot be used: the message says what, where, and what would be right. Shown without a traceback."""


class BadBatch(ValueError):
    """A batch that must not change the weights: they are as they were."""


class NonFiniteError(BadBatch):
    """A loss, a gradient, a log-probability or an advantage that is not finite."""


class MismatchError(BadBatch):
    """Engine and learner do not agree on how likely the sampled tokens are: one of them has other weights, or another context."""
