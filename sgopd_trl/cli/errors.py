"""How mistakes of the user's are shown: one message and an exit code. Everything else keeps its traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


# OSError covers missing files and everything that the Hub answers or does not answer.
_USER_ERRORS = (ValueError, OSError, ImportError)


class UsageError(ValueError):
    """The command line or the recipe cannot be understood. Exit code 2, as argparse has it."""


@contextmanager
def reported(command: str, *errors: type[Exception]) -> Iterator[None]:
    """Show a mistake of the user's as one message. With SGOPD_DEBUG=1 in the environment nothing is caught.

    Args:
        command: what the message begins with. errors: what is shown; default: ValueError, OSError and ImportError.

    Raises:
        SystemExit: in place of these errors; code 2 for a `UsageError`, else 1.
    """
    shown = errors or _USER_ERRORS
    try:
        yield
    except shown as error:
        if os.environ.get("SGOPD_DEBUG") == "1":
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[rank {rank}] "
        text = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
        print(f"{where}{command}: error: {text}", file=sys.stderr)
        if isinstance(error, UsageError):
            raise SystemExit(2) from error
        print("(SGOPD_DEBUG=1 shows where this was raised.)", file=sys.stderr)
        raise SystemExit(1) from error
