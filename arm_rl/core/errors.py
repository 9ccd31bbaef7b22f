"""The errors that a user can mend."""


class UserError(ValueError):
    """Something that the user gave cannot be used: the message says what, where, and what would be right. Shown without a traceback."""
