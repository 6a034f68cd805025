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
def reported(command: str) -> Iterator[None]:
    """Show a mistake of the user's as one message. With SGOPD_DEBUG=1 in the environment nothing is caught.

    Args:
        command: what the message begins with.

    Raises:
        SystemExit: in place of a ValueError, OSError or ImportError; code 2 for a `UsageError`, else 1.
    """
    try:
        yield
    except _USER_ERRORS as error:
        if os.environ.get("SGOPD_DEBUG") == "1":
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f"[rank {rank}] "
        print(f"{where}{command}: error: {str(error) or type(error).__name__}", file=sys.stderr)
        if isinstance(error, UsageError):
            raise SystemExit(2) from error
        print("(SGOPD_DEBUG=1 shows where this was raised.)", file=sys.stderr)
        raise SystemExit(1) from error
