"""The command line: `gurney`."""

import os
import sys

from gurney.cli.app import app
from gurney.errors import GurneyError


def main() -> None:
    """Run the command line; an error is one plain line and an exit code that is not 0."""
    try:
        code = app()
    except GurneyError as error:
        sys.stderr.write(f"gurney: {error}\n")
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered has no reader either
        code = 0
    except OSError as error:
        sys.stderr.write(f"gurney: {_plain(error)}\n")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _plain(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error) or type(error).__name__
