"""What can go wrong by the user's hand. The command line prints one line and exits with 2.

::

    AmcError
    ├── ConfigError      an option, a key or a value that is not understood
    ├── ModelError       a network that cannot be loaded, traced or pruned
    ├── DataError        images that are missing, broken or of the wrong shape
    ├── BudgetError      a limit that cannot be met
    ├── PolicyError      a policy of another network, or a broken one
    ├── BundleError      a run folder or bundle that is not one
    ├── ExportError      the ONNX model could not be made, or does not do what the network does
    └── LatencyError     a latency model or a device that gives no milliseconds
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_LINE = 1000
"""Characters of a message: a longer one is shown without its middle."""


class AmcError(Exception):
    """Base of all errors that name a mistake the user can mend.

    Its text is one line that a terminal may show, whatever names and values of anybody's are in it.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 300]} … {text[-200:]}"


class ConfigError(AmcError):
    """An option, a key or a value that is not understood."""


class ModelError(AmcError):
    """A network that cannot be loaded, traced or pruned."""


class DataError(AmcError):
    """Images that are missing, broken or of the wrong shape."""


class BudgetError(AmcError):
    """A limit that cannot be met."""


class PolicyError(AmcError):
    """A policy of another network, or a broken one."""


class BundleError(AmcError):
    """A run folder or bundle that is not one, or is damaged."""


class ExportError(AmcError):
    """The ONNX model could not be made, or does not compute what the network computes."""


class LatencyError(AmcError):
    """A latency model or a device that gives no milliseconds."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run that can be resumed. Its text is the whole command that goes on."""


class RenamedWarning(FutureWarning):
    """A name or a value of an earlier version, which is accepted for this one still."""


def printable(text: str) -> str:
    """A text of anybody's on one line, without characters that a terminal acts on.

    >>> printable("red: \\x1b[31m\\nnew line")
    'red: \\\\x1b[31m new line'
    """
    return without_escapes(" ".join(text.split()))


def without_escapes(text: str) -> str:
    """A text of anybody's, its lines kept, with whatever a terminal acts on written out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_NO_MEMORY = (
    "failed to map segment",
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "bad allocation",
    "memoryerror",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch, CUDA and ONNX Runtime have no common word for it."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(word in told for word in _NO_MEMORY)


MOST_LISTED = 30


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` when something known is close to ``word``, else what is known, if that is a short list."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if 0 < len(known) <= MOST_LISTED else ""
