"""The one exception that reaches the user: a sentence that says what is wrong, where, and what to do."""


class InputError(ValueError):
    """Bad input at the border (a file, a city, a parameter). The command line prints it as one sentence, exit 2."""
