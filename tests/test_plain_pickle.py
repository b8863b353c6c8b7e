"""The unpickler of refs files: what plain data may look like it reads, and nothing that means harm does any.

All hostile pickles are read in one process of their own (the end of this file), which watches what it does and takes.
"""

import collections
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3dec.processing.referring_data import ReferringDataError, load_referring_dataset
from m3dec.processing.referring_data.readers.plain_pickle import read_plain_pickle

MOST_SECONDS = 5  # measured: below 1
MOST_MEGABYTES = 100
RUN = b"touch m3dec-canary"
WATCHED = {
    "compile",
    "exec",
    "import",
    "open",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
}


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def laughs(empty: bytes, put: bytes, levels: int) -> bytes:
    """`levels` containers, each with the one before in it twice."""
    return empty + b"".join(b"q%c" % n + empty + put.replace(b"!", b"h%c" % n) for n in range(levels)) + b"."


# As a list of lists, each with the one before in it twice, and the last one for whatever is to laugh.
JOKES = b"](]q\x00" + b"".join(b"]q%c(h%c" % (n, n - 1) + b"h%ce" % (n - 1) for n in range(1, 60)) + b"e"


def refs(**fields: bytes) -> bytes:
    """A list of one reference whose fields are good, but for those given as pickled."""
    good = {"ref_id": b"K\x01", "ann_id": b"K\x0b", "image_id": b"K\x07", "split": text("train"), "sentences": b"]"}
    left = {name: value for name, value in good.items() if name not in fields}
    return b"\x80\x02](}(" + b"".join(text(name) + value for name, value in (fields | left).items()) + b"ue."


# How each is called, its bytes, and a part of what the error says.
HOSTILE = {
    # what would import, call or refer
    "GLOBAL": (b"cos\nsystem\n.", "asks for GLOBAL"),
    "REDUCE": (b"cos\nsystem\n(S'%s'\ntR." % RUN, "asks for GLOBAL"),
    "STACK_GLOBAL": (b"\x80\x04" + text("os") + text("system") + b"\x93" + text("touch x") + b"\x85R.", "STACK_GLOBAL"),
    "STACK_GLOBAL of remembered names": (b"\x80\x04" + text("os") + b"\x940" + text("system") + b"h\x00.", "POP"),
    "INST": (b"(S'%s'\nios\nsystem\n." % RUN, "asks for INST"),
    "OBJ": (b"(cos\nsystem\nS'%s'\no." % RUN, "asks for GLOBAL"),
    "OBJ without a global": (b"(]S'x'\no.", "asks for OBJ"),
    "NEWOBJ": (b"\x80\x02]]\x81.", "asks for NEWOBJ"),
    "NEWOBJ_EX": (b"\x80\x04]]}\x92.", "asks for NEWOBJ_EX"),
    "BUILD": (b"]}b.", "asks for BUILD"),
    "REDUCE without a global": (b"]]R.", "asks for REDUCE"),
    "EXT1": (b"\x80\x02\x82\x01.", "asks for EXT1"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "asks for EXT2"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "asks for EXT4"),
    "PERSID": (b"Pfile\n.", "asks for PERSID"),
    "BINPERSID": (text("file") + b"Q.", "asks for BINPERSID"),
    "a GLOBAL thrown away at once": (b"cos\nsystem\n0].", "asks for GLOBAL"),
    "a GLOBAL at the end of good references": (refs()[:-2] + b"cos\nsystem\nS'%s'\n\x85Re." % RUN, "asks for GLOBAL"),
    "a GLOBAL as a field": (refs(split=b"cos\nsystem\n"), "asks for GLOBAL"),
    "a GLOBAL of protocol 0 in a frame": (b"\x80\x04\x95\x0d\0\0\0\0\0\0\0cos\nsystem\n).", "asks for GLOBAL"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "asks for NEXT_BUFFER"),
    "READONLY_BUFFER": (b"\x80\x05]\x98.", "asks for READONLY_BUFFER"),
    # other kinds of objects
    "BYTEARRAY8 of 2**60 bytes": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "not a whole pickle"),
    "BYTEARRAY8": (b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x.", "asks for BYTEARRAY8"),
    "BINBYTES": (b"\x80\x03B\x01\0\0\0x.", "asks for BINBYTES"),
    "FROZENSET": (b"\x80\x04(\x91.", "asks for FROZENSET"),
    "a set": (b"\x80\x04\x8f(K\x01\x90.", "asks for EMPTY_SET"),
    "a tuple": (b"(K\x01t.", "asks for TUPLE"),
    "tuples as a key that takes ages to hash": (b"})" + b"q\x01h\x01\x86" * 60 + b"K\x01s.", "asks for EMPTY_TUPLE"),
    # the stack and its marks
    "nothing to stop with": (b".", "not a whole pickle"),
    "a mark to stop with": (b"(.", "not a whole pickle"),
    "no mark": (b"]K\x01e.", "not a whole pickle"),
    "a mark in the way": (b"](a.", "not a whole pickle"),
    "a mark taken twice": (b"](ee.", "not a whole pickle"),
    "POP": (b"]]0.", "asks for POP"),
    "POP_MARK": (b"](]]1.", "asks for POP_MARK"),
    "DUP": (b"]2a.", "asks for DUP"),
    "a million marks": (b"(" * 10**6, "nests or stacks more than"),
    "a million lists on the stack": (b"]" * 10**6, "nests or stacks more than"),
    "a million numbers on the stack": (b"](" + b"K\x01" * 10**6 + b"e.", "nests or stacks more than"),
    "lists nested by marks": (b"](" * 900 + b"e" * 900 + b".", "more than 100 levels"),
    "lists nested without marks": (b"]" * 9_000 + b"a" * 8_999 + b".", "more than 100 levels"),
    "dicts nested without marks": ((b"}" + text("k")) * 9_000 + b"N" + b"s" * 9_000 + b".", "more than 100 levels"),
    "a field nested without marks": (refs(ref_id=b"]" * 9_000 + b"a" * 8_999), "more than 100 levels"),
    "a list in itself": (b"]q\x00h\x00a.", "more than 100 levels"),
    "a dict in itself": (b"}q\x00" + text("k") + b"h\x00s.", "more than 100 levels"),
    # what is remembered
    "PUT at 10**18": (b"]p%d\n." % 10**18, "remembers its object 0"),
    "PUT at -1": (b"]p-1\n.", "remembers its object 0"),
    "PUT at a number of 4,000 digits": (b"]p" + b"9" * 4_000 + b"\n.", "a number of"),
    "PUT at no number": (b"]px\n.", "not a whole pickle"),
    "BINPUT at 255": (b"]q\xff.", "remembers its object 0"),
    "LONG_BINPUT at 2**32 - 1": (b"]r\xff\xff\xff\xff.", "remembers its object 0"),
    "LONG_BINPUT each time further": (b"]" + b"".join(b"r" + struct.pack("<I", 2**n) for n in range(32)), "remembers"),
    "MEMOIZE nothing": (b"\x80\x04\x94.", "not a whole pickle"),
    "GET of nothing": (b"g0\n.", "not a whole pickle"),
    "GET at -1": (b"]p0\ng-1\n.", "not a whole pickle"),
    "GET of what comes later": (b"h\x00]q\x00.", "not a whole pickle"),
    "LONG_BINGET at 2**32 - 1": (b"j\xff\xff\xff\xff.", "not a whole pickle"),
    "lists that laugh": (laughs(b"]", b"(!!e", 60), "claims more than"),
    "dicts that laugh": (laughs(b"}", b"(" + text("a") + b"!" + text("b") + b"!u", 60), "claims more than"),
    "a field that laughs": (refs(jokes=JOKES, ref_id=b"h\x3b"), "claims more than"),
    "one reference 100,000 times": (
        refs()[:-2] + b"q\x00" + (b"h\x00" * 50_000).join([b"e(", b"e(", b"e."]),
        "lacks a good|claims more than|whole pickle",
    ),
    "3,000 references with the same 3,000 sentences": (
        b"]](" + b"]" * 3_000 + b"eq\x00a(" + (b"}" + text("sentences") + b"h\x00s") * 3_000 + b"e.",
        "claims more than",
    ),
    # numbers
    "LONG1 of 255 bytes": (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "a number of 2,0|a number of 20"),
    "LONG4 of a million bytes": (b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".", "a number of"),
    "LONG4 of 2**31 - 1 bytes": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "not a whole pickle"),
    "LONG4 of -1 bytes": (b"\x80\x02\x8b\xff\xff\xff\xff.", "not a whole pickle"),
    "LONG of 4,000 digits": (b"L" + b"9" * 4_000 + b"L\n.", "a number of"),
    "LONG of a million digits": (b"L" + b"9" * 10**6 + b"L\n.", "not a whole pickle"),
    "INT of a million digits": (b"I" + b"9" * 10**6 + b"\n.", "not a whole pickle"),
    "FLOAT that is none": (b"Fx\n.", "not a whole pickle"),
    # lengths
    "BINUNICODE of 2**32 - 1 bytes": (b"X\xff\xff\xff\xffx.", "not a whole pickle"),
    "BINUNICODE8 of 2**60 bytes": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.", "not a whole pickle"),
    "BINUNICODE8 of 2**64 - 1 bytes": (b"\x80\x04\x8d" + struct.pack("<Q", 2**64 - 1) + b"x.", "not a whole pickle"),
    "BINSTRING of -1 bytes": (b"T\xff\xff\xff\xffx.", "not a whole pickle"),
    "BINSTRING of 2**31 - 1 bytes": (b"T\xff\xff\xff\x7fx.", "not a whole pickle"),
    "a frame of 2**60 bytes": (b"\x80\x05\x95" + struct.pack("<Q", 2**60) + b"].", "not a whole pickle"),
    "a frame of 2**64 - 1 bytes": (b"\x80\x05\x95" + struct.pack("<Q", 2**64 - 1) + b"].", "not a whole pickle"),
    "a frame that ends within an argument": (b"\x80\x05\x95\x03" + bytes(7) + text("abc") + b".", "not a whole pickle"),
    # dicts
    "numbers as keys, which can be chosen to collide": (b"}(" + b"J\0\0\0\1N" * 9_000 + b"u.", "key that is no string"),
    "a number as the key of SETITEM": (b"}K\x01Ns.", "key that is no string"),
    "a remembered number as a key": (b"}K\x01q\x00h\x00s.", "key that is no string"),
    "a float as a key of DICT": (b"(F1\nNd.", "key that is no string"),
    "a list as a key": (b"}]Ns.", "key that is no string"),
    "a key without a value": (b"}(" + text("a") + b"u.", "not a whole pickle"),
    "pairs for a list": (b"](" + text("a") + b"Nu.", "not a whole pickle"),
    "entries for a dict": (b"}(K\x01e.", "not a whole pickle"),
    "1,500,000 empty dicts": (b"](" + (b"}" * 50_000).join([b"e("] * 31)[2:] + b"e.", "lists and dicts in"),
    # text
    "a STRING without its second quote": (b"S'abc\n.", "not a whole pickle"),
    "a STRING with half an escape": (b"S'\\x'\n.", "not a whole pickle"),
    "a UNICODE with half an escape": (b"V\\u12\n.", "not a whole pickle"),
    "a BINUNICODE that is no UTF-8": (b"X\x01\0\0\0\xff.", "not a whole pickle"),
    # no pickle
    "an empty file": (b"", "not a whole pickle"),
    "half a pickle": (refs()[: len(refs()) // 2], "not a whole pickle"),
    "all but the last byte": (refs()[:-1], "not a whole pickle"),
    "JSON": (b'[{"ref_id": 1}]', "not a whole pickle"),
    "an image": (b"\x89PNG\r\n\x1a\n", "asks for|not a whole pickle"),
    "a protocol to come": (b"\x80\x06].", "not a whole pickle"),
    "zeros": (bytes(10**6), "not a whole pickle"),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict:
    """What the process below says of each hostile pickle."""
    folder = tmp_path_factory.mktemp("hostile")
    child = subprocess.run(
        [sys.executable, Path(__file__).absolute(), folder], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["read_plain_pickle", "load_referring_dataset"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_is_refused_in_bounded_time_and_memory(reports, name, way):
    report = reports[name][way]
    assert report["error"] in ("UnsafePickleError", "ReferringDataError"), report
    assert any(part in report["message"] for part in HOSTILE[name][1].split("|")), report
    assert len(report["message"]) < 1_000
    assert report["did"] == []
    assert report["seconds"] < MOST_SECONDS
    assert report["megabytes"] is None or report["megabytes"] < MOST_MEGABYTES


def test_the_watch_over_hostile_pickles_sees_what_python_itself_would_run(reports):
    assert {"pickle.find_class", "os.system", "file written"} <= set(reports["REDUCE"]["pickle.loads"]["did"])


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=8,
)


@settings(max_examples=1000, deadline=None)
@given(plain, st.integers(0, 5))
def test_plain_data_of_any_protocol_is_read(value, protocol):
    assert read_plain_pickle(pickle.dumps(value, protocol), "refs") == value


def python_2(value, memo: dict) -> bytes:
    """`value` as Python 2's cPickle writes it in protocol 2: text of one byte a letter, remembered from number 1 on."""

    def remembered(code: bytes) -> bytes:
        number = memo[id(value) if isinstance(value, list | dict) else value] = len(memo) + 1
        return code + (b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, int):
        for code, form in {b"K": "<B", b"M": "<H", b"J": "<i"}.items():
            if value in range(*{"<B": (0, 2**8), "<H": (0, 2**16), "<i": (-(2**31), 2**31)}[form]):
                return code + struct.pack(form, value)
        return b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, str) and value in memo:
        number = memo[value]
        return b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
    if isinstance(value, str):
        letters = value.encode("latin1")
        short = len(letters) < 256
        return remembered((b"U" + bytes([len(letters)]) if short else b"T" + struct.pack("<i", len(letters))) + letters)
    if isinstance(value, list):
        start = remembered(b"]")
        return start + b"(" + b"".join(python_2(each, memo) for each in value) + b"e"
    start = remembered(b"}")
    return start + b"(" + b"".join(python_2(key, memo) + python_2(value[key], memo) for key in value) + b"u"


latin_1 = st.text(st.characters(max_codepoint=255), max_size=300)
python_2_data = st.recursive(
    st.none() | st.booleans() | numbers | latin_1,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(latin_1, inner, max_size=5),
    max_leaves=8,
)


@settings(max_examples=1000, deadline=None)
@given(python_2_data)
def test_plain_data_of_python_2_is_read(value):
    assert read_plain_pickle(b"\x80\x02" + python_2(value, {}) + b".", "refs") == value


@settings(max_examples=1000, deadline=None)
@given(latin_1)
def test_text_of_python_2_in_protocol_0_is_read(value):
    written = repr(value.encode("latin1"))[1:].encode()  # as Python 2's repr, without the b
    data = b"(lp1\n(dp2\nS'raw'\np3\nS" + written + b"\np4\nsa."
    assert read_plain_pickle(data, "refs") == [{"raw": value}]


def test_more_objects_than_bytes_of_a_memo_number_are_remembered():
    value = [f"word {number}" for number in range(1_009)]
    assert read_plain_pickle(b"\x80\x02" + python_2(value, {}) + b".", "refs") == value


def test_a_list_in_two_places_is_read():
    shared = ["a", "man"]
    value = [{"tokens": shared, "words": shared}]
    assert read_plain_pickle(pickle.dumps(value, 2), "refs") == value


def test_a_float_that_is_no_number_is_read():
    assert math.isnan(read_plain_pickle(pickle.dumps([math.nan], 2), "refs")[0])


def test_what_stands_behind_the_stop_is_never_looked_at():
    assert read_plain_pickle(refs() + b"cos\nsystem\n(S'x'\ntR.", "refs")[0]["ref_id"] == 1


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        {1},
        frozenset([1]),
        (1, 2),
        (),
        b"a",
        bytearray(b"a"),
        1j,
        Decimal(1),
        Path("a"),
        range(3),
        print,
        collections.OrderedDict(a=1),
        collections.Counter("a"),
    ],
    ids=repr,
)
def test_an_object_that_is_no_plain_data_is_refused_within_it_too(value, protocol):
    for data in (value, [{"raw": value}]):
        with pytest.raises(ReferringDataError, match="asks for"):
            read_plain_pickle(pickle.dumps(data, protocol), "refs")


def watched(read) -> dict:
    """What `read()` raised, did, and took: run in the process below."""
    before = memory("VmRSS")
    did = WATCH.did = []
    start = time.perf_counter()
    try:
        read()
        error = None
    except Exception as raised:
        error = raised
    seconds = time.perf_counter() - start
    WATCH.did = None
    if Path("m3dec-canary").exists():
        did.append("file written")
        os.remove("m3dec-canary")
    return {
        "error": type(error).__name__,
        "message": str(error),
        "did": sorted(set(did)),
        "seconds": seconds,
        "megabytes": None if before is None else memory("VmHWM") - before,
    }


def memory(kind: str) -> float | None:
    """Megabytes now (VmRSS, from where the peak is counted anew) or at the peak (VmHWM); None where Linux is not."""
    try:
        if kind == "VmRSS":
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind + ":"))
    except (OSError, StopIteration):
        return None


class WATCH:
    did = None

    @classmethod
    def hook(cls, event, _):
        if cls.did is not None and event in WATCHED:
            cls.did.append(event)


def main(folder: Path) -> None:
    """Read every hostile pickle in both ways, from a folder that is all right otherwise."""
    (folder / "tiny" / "images").mkdir(parents=True)
    (folder / "tiny" / "instances.json").write_text('{"images": [], "annotations": []}')
    path = folder / "tiny" / "refs(unc).p"
    sys.addaudithook(WATCH.hook)
    for data in (b"V\\u00e9\n.", b"S'a'\n.", text("a") + b"."):  # imports codecs
        read_plain_pickle(data, "refs")
    reports = {}
    for name, (data, _) in HOSTILE.items():
        path.write_bytes(data)
        plain = watched(lambda data=data: read_plain_pickle(data, "refs"))
        whole = watched(lambda: load_referring_dataset("refer", root=folder, dataset="tiny", split_by="unc"))
        whole["did"] = [
            event for event in whole["did"] if event not in ("open", "import", "exec", "compile")
        ]  # its own
        reports[name] = {"read_plain_pickle": plain, "load_referring_dataset": whole}
    reports["REDUCE"]["pickle.loads"] = watched(lambda: pickle.loads(HOSTILE["REDUCE"][0]))
    print(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
