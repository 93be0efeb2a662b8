"""The exception for a user's mistake, and how a command ends with it."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import walk_tb

from deft_hf.utils.text import printable, without_credentials


class UserError(ValueError):
    """A mistake that the user can fix: says the file or key, what was found, what was expected and what to do.

    Commands print only its message and exit with status 2; every other exception is a bug in deft_hf and keeps its
    traceback.
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    text = without_credentials(str(error)).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


class TrainingDiverged(UserError):
    """The training loss is no longer finite; the last checkpoint is kept."""


class UnreadableFile(UserError):
    """An image or a mask that cannot be read or decoded."""


# How torch says that a convolution, a pooling or a padding is larger than what comes in.
_TOO_SMALL = (
    "can't be greater than actual input size",
    "Output size is too small",
    "Padding size should be less than",
)


@contextmanager
def batches_explained() -> Iterator[None]:
    """Wrap training: a batch that is too large for the device, too small for the model, or none becomes one message.

    Raises:
        UserError: In place of torch's error about memory, about a single value per channel, or about a kernel beyond
            its input, and Accelerate's about a stream without an item.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of an accelerator
            raise UserError(
                f"the memory of the device is too small for a step ({first_line(error)}): halve "
                "per_device_train_batch_size and double gradient_accumulation_steps, or take smaller crops or "
                "gradient_checkpointing."
            ) from error
        if str(error).startswith("Expected more than 1 value per channel"):
            raise UserError(
                "per_device_train_batch_size: found 1, too few for a BatchNorm behind a pooling to one pixel; set it "
                "to 2 or more, and save memory by smaller crops or gradient_checkpointing."
            ) from error
        if str(error).startswith("Batch does not contain any data"):  # so Accelerate says
            raise UserError("train_dataset: the stream ended without an item.") from error
        if any(text in str(error) for text in _TOO_SMALL):
            raise UserError(
                f"the images of a batch are too small for this model ({first_line(error)}): use larger ones, in a "
                "recipe by data.crop_size and data.image_size."
            ) from error
        raise


@contextmanager
def workers_explained() -> Iterator[None]:
    """Wrap data loading: the failure of a data-loader worker becomes one message.

    Raises:
        UserError: In place of a worker's error and its traceback, or if a worker died.
    """
    try:
        yield
    except UserError as error:
        # A worker's error has the traceback as its text.
        *before, text = re.split(r"^deft_hf\.utils\.errors\.\w+: ", str(error), flags=re.MULTILINE)
        if not before:
            raise
        raise type(error)(text.strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError):
            died = re.match(r"DataLoader (worker \(pid|timed out)", str(error)) is not None
        else:  # while it was handing over a batch
            modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
            died = any(module.startswith("multiprocessing.") for module in modules)
        if not died:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise UserError(
            f"a process that loads images died or hangs ({reason}). Usually memory ran out, or shared memory "
            "(/dev/shm): lower dataloader_num_workers. Restarted, training resumes from the last checkpoint."
        ) from error


def run_command(main: Callable[[], None], when_interrupted: str) -> None:
    """Run an entry point and turn how it ends into an exit status.

    A user's mistake is one message and status 2, Ctrl-C is 130, SIGTERM while training (after saving) 143.

    Args:
        main (`Callable[[], None]`):
            Entry point to run.
        when_interrupted (`str`):
            Message for the user after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no UTF-8
    try:
        with workers_explained():
            main()
    except UserError as error:
        print(f"error: {printable(without_credentials(str(error)))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        try:
            print(flush=True)  # is it our pipe that is broken, or one to a data-loader worker?
        except BrokenPipeError:
            # The reader of our output, such as `head`, is done. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)  # the shell's status for SIGPIPE
        raise
    except OSError as error:
        # A failing disk is not a bug in deft_hf, whatever was being written.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO):
            raise
        print(f"error: {error}; make room, then {when_interrupted}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr)
        sys.exit(130)
