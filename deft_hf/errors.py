"""The one exception that stands for a mistake of the user's, and how a command ends with it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake that the user can mend: says the file or key, what was found, what was expected and what to do.

    Entry scripts print its message alone and exit with status 2; every other exception is a defect of deft_hf and
    keeps its traceback.
    """


class TrainingDiverged(UserError):
    """The training loss is no longer finite; the last checkpoint is kept."""


def run_command(main: Callable[[], None], when_interrupted: str) -> None:
    """Run an entry for the command line: a user's mistake is one message and exit status 2, Ctrl-C is 130.

    Args:
        main: the entry.
        when_interrupted: what the user should know after Ctrl-C.
    """
    try:
        main()
    except UserError as error:
        # A data-loader worker hands its error on with the traceback in front.
        print(f"error: {str(error).rpartition('UserError: ')[2]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr)
        sys.exit(130)
