"""The one exception that commands turn into a message."""


class SkipRNNError(Exception):
    """Something the user can mend: the message says what, where and how."""
