"""The command line: `gurney`."""

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
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
