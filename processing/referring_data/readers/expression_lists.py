"""Lists of expressions in .json, .jsonl and .csv files, entry by entry, each with the line where it begins.

They are read by hand: pyarrow's readers stop at the first fault, do not say on which line it is, and want one type for
each field of all entries.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from m3dec.processing.referring_data.schema import ReferringDataError

Entries = Iterator[tuple[int, object]]


def read_entries(path: Path, wrong_names: Callable[[tuple[str, ...]], list[str]] = lambda names: []) -> Entries:
    """Each entry of a list of expressions with its line, from 1 on; an error in place of what is no entry.

    Args:
        path: a .json list, a .jsonl file or a .csv file, in UTF-8.
        wrong_names: says what is wrong with the names in the first line of a .csv file. Where something is, no entry is
            read.

    Raises:
        ReferringDataError: another kind of file.
        FileNotFoundError: no file.
    """
    kinds = {".json": _entries_of_list, ".jsonl": _entries_of_lines, ".csv": _entries_of_csv}
    kind = path.suffix.lower()
    if kind not in kinds:
        raise ReferringDataError(f"Expressions are in a {', '.join(kinds)} file, but {path} is none of them.")
    if not path.is_file():
        raise FileNotFoundError(f"Expressions are read from {path}, which is no file.")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield line, ReferringDataError(f"{path} is not in UTF-8. Save it so; Excel calls it “CSV UTF-8”.")
        return
    yield from kinds[kind](text, wrong_names) if kind == ".csv" else kinds[kind](text)


def _entries_of_csv(text: str, wrong_names: Callable[[tuple[str, ...]], list[str]]) -> Entries:
    first = text.lstrip().partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","  # as Excel writes where 1,5 is a number
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    names, line = None, 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield line, ReferringDataError(f"this is no CSV: {error}. Is a quotation mark left open?")
            row = []
        if row is None:
            return
        if row and names is None:
            names = tuple(row)
            if wrong := wrong_names(names):
                yield from ((line, ReferringDataError(message)) for message in wrong)
                return
        elif any(row) and len(row) != len(names):
            message = f"every line has the {len(names)} fields of the first, but here are {len(row)}. "
            yield line, ReferringDataError(message + f"A text with a {delimiter!r} in it stands in quotation marks.")
        elif any(row):  # Excel leaves lines of commas
            yield line, dict(zip(names, row, strict=True))
        line = rows.line_num + 1


def _entries_of_lines(text: str) -> Entries:
    for line, row in enumerate(text.split("\n"), start=1):  # splitlines would split at letters that JSON allows
        if row.strip():
            try:
                yield line, json.loads(row)
            except json.JSONDecodeError as error:
                yield line, ReferringDataError(f"this is no JSON: {error.msg} at letter {error.colno}")
            except (ValueError, RecursionError) as error:
                yield line, ReferringDataError(f"this is no JSON: {error}")


def _entries_of_list(text: str) -> Entries:
    decode, blanks = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n]*")
    place = counted = blanks.match(text).end()
    line = 1 + text.count("\n", 0, place)
    if text[place : place + 1] != "[":
        yield line, ReferringDataError("the file is no JSON list: it begins with [ and has entries { } in it")
        return
    if re.fullmatch(r"\[\s*\]\s*", text[place:]):
        return
    while text[place : place + 1] in ("[", ","):
        place = blanks.match(text, place + 1).end()
        line, counted = line + text.count("\n", counted, place), place
        try:
            entry, place = decode(text, place)
        except (ValueError, RecursionError) as error:
            yield line, ReferringDataError(f"this is no JSON from here on: {error}")
            return
        yield line, entry
        place = blanks.match(text, place).end()
    if text[place:].rstrip() != "]":
        line += text.count("\n", counted, place)
        message = "this is no JSON from here on: a comma between entries, or ] at the end, is not there"
        yield line, ReferringDataError(message)
