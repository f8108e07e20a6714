"""The one exception that reaches the user: a sentence that says what is wrong,
where, and what to do.
"""

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches

REMEDIES = {  # against what an operating system refuses
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "choose a file system that takes larger files, or raise the limit (ulimit -f)",
    errno.EROFS: "choose a folder that is not mounted read-only",
    errno.EACCES: "correct its permissions",
    errno.EPERM: "correct its permissions",
    errno.EISDIR: "a folder is where a file is wanted: move or rename it",
    errno.ENOTDIR: "a file is where a folder is wanted: move or rename it",
    errno.EEXIST: "something is already there under that name: move or rename it",
    errno.ENAMETOOLONG: "shorten its name",
    errno.ELOOP: "its links lead round in a circle: correct them",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "its disk fails: have it checked before you trust what is on it",
    errno.ESTALE: "its network drive is gone: mount it again",
}


class InputError(ValueError):
    """Bad input at the border (a file, a city, a parameter). The command line prints it as one
    sentence, exit 2.
    """


def cause(error: BaseException) -> int | None:
    """The errno, of those with a remedy, behind an error: its own, or the one
    whose words a library quotes.
    """
    # GDAL's errors have an errno too, of its own numbers
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in REMEDIES else None
    words = str(error.__cause__ or error)
    return next((code for code in REMEDIES if os.strerror(code) in words), None)


def refusal(where: object, code: int) -> str:
    """A sentence: what the operating system refused there, and what helps."""
    return f"{where}: {os.strerror(code)}; {REMEDIES[code]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like a mistaken one."""
    return get_close_matches(name, known, n=1, cutoff=0)[0]
