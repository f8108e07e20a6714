"""The one exception that reaches the user: a sentence that says what is wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input at the border (a file, a city, a parameter). The command line prints it as one sentence, exit 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like a mistaken one."""
    return get_close_matches(name, known, n=1, cutoff=0)[0]
