"""How a command shows what it is doing: all of it on stderr."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator

from amc.runtime.monitor import Logged, Monitor


@contextlib.contextmanager
def progress(parsed: argparse.Namespace) -> Iterator[Monitor]:
    """The monitor that the command line asks for: the display, the log (``--verbose``) or warnings (``--quiet``)."""
    from amc.runtime.display import Display, Warnings

    if parsed.quiet:
        yield Warnings()
    elif parsed.verbose:
        yield Logged()
    else:
        with Display() as display:
            yield display


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """While this lasts, what is logged under ``amc`` is written to stderr, a line for every record."""
    log, handler = logging.getLogger("amc"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
