"""Pickles of lists, dicts, strings and numbers, as the official refs files are: read without trusting them.

A file that imports nothing can still ask for endless memory or time. So all opcodes are checked first, one by one, and
nothing is built before all of them are known to be harmless. The format is described in Python's `pickletools`.
"""

import functools
import io
import pickle
import pickletools

from tqdm import tqdm

from m3dec.processing.referring_data.schema import ReferringDataError

MOST_BYTES = 2**29  # the largest official file has some 30 MB
MOST_STACKED = 100_000  # objects waiting to be put into another: Python's pickles stack 1,000 a level
MOST_MARKS = 1_000
MOST_INTEGER_BITS = 64
MOST_LEVELS = 100  # of lists and dicts in each other; a refs file has 5
FEWEST_BYTES = 8  # that a pickle has for each list and dict; an empty one can take 1 byte there, and 80 in memory

# Tuples are not allowed. A tuple can be the key of a dict, and one of 60 levels that share parts is hashed for hours.
_ALLOWED = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT SETITEM SETITEMS DICT
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
_OPCODES = [opcode for opcode in pickletools.opcodes if opcode.name in _ALLOWED.split()]
_ENDS_AT_MARK = frozenset(opcode.name for opcode in _OPCODES if pickletools.markobject in opcode.stack_before)
# Objects that an opcode takes from the stack, after those above the mark where it ends at one.
_TAKES = {
    opcode.name: opcode.stack_before.index(pickletools.markobject)
    if opcode.name in _ENDS_AT_MARK
    else len(opcode.stack_before)
    for opcode in _OPCODES
}
_TEXT = frozenset(name for name in _TAKES if "STRING" in name or "UNICODE" in name)
_CONTAINERS = frozenset(["EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT"])
_REMEMBERING = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_RECALLING = frozenset(["GET", "BINGET", "LONG_BINGET"])
_UNKNOWN, _OTHER, _KEY = range(3)  # what is known of an object: nothing, that it is no text, that it may be a key
_GIVES = {opcode.name: bytes([_OTHER]) * len(opcode.stack_after) for opcode in _OPCODES}
_READERS = {
    opcode.code.encode("latin1"): (opcode.name, None if opcode.arg is None else opcode.arg.reader)
    for opcode in pickletools.opcodes
} | {b"S": ("STRING", functools.partial(pickletools.read_stringnl, decode=False))}  # else ASCII only


class UnsafePickleError(ReferringDataError, pickle.UnpicklingError):
    """A pickle asks for more than lists, dicts, strings and numbers, or for absurd memory. Nothing of it was run."""


def read_plain_pickle(data: bytes, name: str):
    """What the pickle `data` holds; strings of Python 2 are read as Latin-1.

    Args:
        data: all of it.
        name: what an error calls it.

    Raises:
        UnsafePickleError: it would import, call or refer to something, or claims absurd sizes.
        ReferringDataError: it is no pickle, or damaged.
    """
    check_opcodes(data, name)
    try:
        value = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        raise _damaged(name, error) from error
    _check_levels(value, len(data), name)
    return value


def check_opcodes(data: bytes, name: str) -> None:
    """Check every opcode of `data`; nothing is built. Errors as of `read_plain_pickle`."""
    if len(data) > MOST_BYTES:
        raise _unsafe(name, f"has {len(data):,} bytes, more than {MOST_BYTES:,}")
    stack, marks, containers = bytearray(), [], 0  # of each stacked object, what is known
    memo, num_remembered = bytearray(), 0
    most_containers = 10_000 + len(data) // FEWEST_BYTES
    progress = tqdm(total=len(data), desc=f"checking {name}", unit="B", unit_scale=True, disable=len(data) < 2**22)
    try:
        for number, (kind, argument, position) in enumerate(_opcodes(data)):
            if number % 2**16 == 0:
                progress.update(position - progress.n)
            if argument.__class__ is int and argument.bit_length() > MOST_INTEGER_BITS:
                raise _unsafe(name, f"holds a number of {argument.bit_length()} bits")
            if kind in _TEXT:
                stack.append(_KEY)
            elif kind == "MARK":
                marks.append(len(stack))
            elif kind in _REMEMBERING:
                place = num_remembered if argument is None else argument
                # Python numbers what it remembers from 0 or 1 on; memory is taken for all numbers below.
                if not 0 <= place <= num_remembered + 1:
                    raise _unsafe(name, f"remembers its object {num_remembered} under the number {place}")
                if place >= len(memo):
                    memo.extend(bytes(place + 1 - len(memo)))
                num_remembered += memo[place] == _UNKNOWN
                memo[place] = stack[-1]
            elif kind in _RECALLING:
                if memo[argument] == _UNKNOWN:
                    raise ValueError(f"nothing is remembered under the number {argument}")
                stack.append(memo[argument])
            elif kind not in _TAKES:
                raise _unsafe(name, f"asks for {kind} {'' if argument is None else argument}")
            else:
                bottom = marks.pop() if kind in _ENDS_AT_MARK else len(stack)
                # A dict of chosen numbers as keys takes hours to build. Python hashes text with a secret: it is safe.
                keys = stack[-2:-1] if kind == "SETITEM" else stack[bottom::2] if kind in ("SETITEMS", "DICT") else b""
                if _OTHER in keys:
                    raise _unsafe(name, "has a dict with a key that is no string")
                bottom -= _TAKES[kind]
                if bottom < (marks[-1] if marks else 0):
                    raise ValueError(f"too few objects for {kind}")
                del stack[bottom:]
                stack.extend(_GIVES[kind])
                containers += kind in _CONTAINERS
            if len(stack) > MOST_STACKED or len(marks) > MOST_MARKS:
                raise _unsafe(name, f"nests or stacks more than {MOST_STACKED:,} objects, or {MOST_MARKS:,} marks")
            if containers > most_containers:
                raise _unsafe(name, f"holds more than {most_containers:,} lists and dicts in {len(data):,} bytes")
    except UnsafePickleError:
        raise
    except Exception as error:  # an argument cut off, a stack that runs empty, bytes that are no opcode
        raise _damaged(name, error) from error
    finally:
        progress.close()


def _opcodes(data: bytes):
    """Each opcode's name, argument and position, as `pickletools.genops` but for Python 2's strings beyond ASCII."""
    file = io.BytesIO(data)
    code = b""
    while code != b".":
        position, code = file.tell(), file.read(1)
        if code not in _READERS:
            raise ValueError(f"{code!r} at byte {position} is no opcode" if code else "it ends before it stops")
        kind, reader = _READERS[code]
        yield kind, None if reader is None else reader(file), position


def _check_levels(value, most: int, name: str) -> None:
    """Refuse lists and dicts that contain each other again and again: a small file would hold endless values."""
    level, num_values, num_levels = [value] if isinstance(value, list | dict) else [], 0, 0
    while level:
        num_values += sum(map(len, level))  # no more than bytes, as long as none is in two places
        num_levels += 1
        if num_values > most or num_levels > MOST_LEVELS:
            raise _unsafe(name, f"has more than {MOST_LEVELS} levels, or claims more than {most:,} values")
        values = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for each in values for value in each if isinstance(value, list | dict)]


class _PlainUnpickler(pickle.Unpickler):
    """A second guard after `check_opcodes`: no name is ever looked up."""

    def find_class(self, module, name):
        raise UnsafePickleError(f"The pickle asks for {module}.{name}. Nothing was run.")

    def persistent_load(self, pid):
        raise UnsafePickleError(f"The pickle asks for the outside object {pid!r:.80}. Nothing was run.")


def _unsafe(name: str, what: str) -> UnsafePickleError:
    return UnsafePickleError(
        f"A refs file holds lists, dicts, strings and numbers only, but {name} {what:.120}. Nothing was run. Do not "
        "use the file; fetch it again from where the data set was published."
    )


def _damaged(name: str, error: Exception) -> ReferringDataError:
    return ReferringDataError(
        f"{name} is not a whole pickle: {type(error).__name__}: {error!s:.120}. Fetch it again from where the data set "
        "was published."
    )
