"""Errors that end a program with their message alone: those whose message tells the user what to do."""

import functools
import linecache
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError


def exits_with_message(main: Callable) -> Callable:
    """Decorate a program's `main`: an error for the user becomes a `SystemExit` with its message, without a traceback.

    A bug keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(*arguments, **options):
        try:
            return main(*arguments, **options)
        except SafetensorError as error:
            raise SystemExit(
                f"A file of weights is damaged or not whole ({error}). Fetch the model again; a clone needs git-lfs."
            ) from error
        except Exception as error:
            if not is_for_the_user(error):
                raise
            raise SystemExit(str(error)) from error

    return wrapped


@contextmanager
def loading(model: str) -> Iterator[None]:
    """End the program with the name of a model that cannot be loaded, and the reason."""
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        *_, last = str(error).strip().splitlines()  # pipeline() writes whole tracebacks into its message
        raise SystemExit(f"{model} cannot be loaded: {last if 'Traceback' in str(error) else error}") from error


def is_for_the_user(error: Exception) -> bool:
    """Whether an error is about the user's files, network or settings, or was raised by m3dec on purpose.

    A ValueError or ImportError counts only where a `raise` of m3dec raised it: numpy and torch raise such errors, too,
    when our code has a bug.
    """
    if isinstance(error, OSError):  # with a number but no file it does not say what to do
        return error.errno is None or error.filename is not None
    if isinstance(error, StrictDataclassError) or type(error).__module__.startswith("m3dec."):
        return True
    *_, (frame, line_number) = traceback.walk_tb(error.__traceback__)
    statement = linecache.getline(frame.f_code.co_filename, line_number).lstrip()
    ours = frame.f_globals.get("__name__", "").partition(".")[0] in ("m3dec", "__main__")
    return isinstance(error, ValueError | ImportError) and ours and statement.startswith("raise ")
