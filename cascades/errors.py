"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Bad input, in one sentence: what was expected, what came, what to do. Launchers print it and exit with 2."""
