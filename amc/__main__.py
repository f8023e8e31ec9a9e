"""The process of the command line. Ctrl-C is one line and exit code 130 whenever it comes: while libraries are being
imported, again while a command stops, and while the interpreter ends."""

import os
import signal
import sys


def run() -> int:
    """Run the command that this process was started for; gives the exit code."""
    # large tensors on huge pages: torch reads this when it first needs memory, and does nothing where Linux has none
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    pressed = False

    def interrupt(*_: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as after a shell's &
        signal.signal(signal.SIGINT, interrupt)
    try:
        try:
            from amc.cli import main

            return main()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except (Exception, KeyboardInterrupt):  # libraries that are being imported turn it into errors of theirs
        if not pressed:
            raise
        exec("")  # as in `main`
        print("amc: stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
