"""Libraries that log, warn and print, kept off the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(*libraries: str) -> Iterator[None]:
    """Drop warnings, prints, and what the loggers of these libraries say.

    >>> with silenced("torch"):
    ...     print("nothing of this is seen")
    """
    loggers = [
        log
        for name, log in logging.root.manager.loggerDict.items()
        if isinstance(log, logging.Logger) and name.partition(".")[0] in libraries
    ]
    levels = [log.level for log in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
