"""Segmentations of every kind become the right mask or a named error, and never bring pycocotools down."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from referring_files import runs_of
from test_plain_pickle import memory

from m3dec.processing.referring_data import ReferringDataError, decode_mask, schema
from m3dec.processing.referring_data.readers.segmentations import union_of_segmentations
from m3dec.processing.referring_data.schema import encode_mask
from m3dec.processing.referring_iou.run_lengths import decode_counts

thorough = settings(max_examples=1000, deadline=None)
HEIGHT, WIDTH = 11, 17
masks = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda size: st.lists(
        st.lists(st.booleans(), min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
    )
)


def mask_of(runs: list[int], height: int, width: int) -> np.ndarray:
    """The mask of run lengths, one pixel at a time; empty runs anywhere are allowed."""
    mask = np.zeros((height, width), dtype=bool)
    place = 0
    for number, run in enumerate(runs):
        for _ in range(run):
            mask[place % height, place // height] = number % 2 == 1
            place += 1
    return mask


def written(runs: list[int]) -> str:
    """COCO's string of run lengths, one character at a time, from the format's description."""
    characters = []
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        while True:
            rest, group = divmod(rest, 32)
            done = (rest == 0 and group < 16) or (rest == -1 and group >= 16)
            characters.append(chr(48 + group + (0 if done else 32)))
            if done:
                break
    return "".join(characters)


def read(counts: str) -> list[int] | None:
    """The run lengths in COCO's string, one character at a time; None where it is no such string."""
    runs, group, value = [], 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or group == 7:
            return None
        value += (code % 32) * 32**group
        group += 1
        if code < 32:
            value -= 32**group if code >= 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            group, value = 0, 0
    return None if group or not runs else runs


def union(segmentations, height=HEIGHT, width=WIDTH) -> np.ndarray:
    packed = union_of_segmentations(segmentations, height, width, "annotation 5")
    assert packed["size"] == [height, width]
    assert sum(read(packed["counts"])) == height * width
    return decode_mask(packed)


@thorough
@given(masks)
@example([[False]])
@example([[True]])
@example([[False] * 5] * 3)
@example([[True] * 5] * 3)
@example([[True, False], [False, False]])
def test_run_lengths_of_both_kinds_are_the_mask(mask):
    size, runs = [len(mask), len(mask[0])], runs_of(mask)
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    assert written(runs) == packed.decode("ascii")
    for counts in (runs, [float(run) for run in runs], written(runs), packed):
        np.testing.assert_array_equal(union([{"size": size, "counts": counts}], *size), mask)


runs_with_empty_ones = st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=1, max_size=13)


@thorough
@given(st.lists(st.tuples(runs_with_empty_ones, st.booleans()), min_size=1, max_size=3))
@example([([3, 0, 2, 5], False), ([3, 0, 2, 5], False)])  # pycocotools alone stops the union at the common empty run
@example([([0] * 1_000 + [1], True), ([0] * 1_000 + [1], False)])  # and here writes past its memory
def test_a_union_of_run_lengths_with_empty_runs_is_every_pixel_of_any(parts):
    height, width = 1, max(1, *(sum(runs) for runs, _ in parts))
    filled = [[*runs, width - sum(runs)] for runs, _ in parts]
    expected = np.any([mask_of(runs, height, width) for runs in filled], axis=0)
    counts = [written(runs) if packed else runs for runs, (_, packed) in zip(filled, parts, strict=True)]
    given = [{"size": [height, width], "counts": each} for each in counts]
    np.testing.assert_array_equal(union(given, height, width), expected)


characters = st.characters(min_codepoint=46, max_codepoint=113) | st.sampled_from("01245`o\0é😀\ud800")
garbage = st.text(characters, max_size=12) | st.lists(st.integers(-40, 200), max_size=9).map(written)


@thorough
@given(garbage)
@example("é")
def test_a_string_of_counts_is_read_as_its_format_says_or_refused(counts):
    ours, expected = decode_counts(counts), read(counts)
    assert (None if ours is None else ours.tolist()) == expected


@thorough
@given(garbage, st.integers(1, 9), st.integers(1, 9))
@example("é", 3, 5)  # "?" stands for 15, which is the size
def test_a_garbage_string_is_refused_or_a_mask_of_the_right_size(counts, height, width):
    runs = read(counts)
    whole = runs is not None and min(runs) >= 0 and sum(runs) == height * width
    segmentation = {"size": [height, width], "counts": counts}
    if not whole:
        with pytest.raises(ReferringDataError, match="annotation 5"):
            union([segmentation, segmentation], height, width)
    else:
        expected = mask_of(runs, height, width)
        np.testing.assert_array_equal(union([segmentation], height, width), expected)
        np.testing.assert_array_equal(union([segmentation, segmentation], height, width), expected)


coordinates = st.integers(-170, 170) | st.floats(-170, 170) | st.floats(-2, 19).map(lambda x: round(x, 2))
polygons = st.integers(3, 7).flatmap(lambda n: st.lists(coordinates, min_size=2 * n, max_size=2 * n))
whole_runs = st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH).map(
    lambda pixels: np.reshape(pixels, (HEIGHT, WIDTH)).tolist()
)


def polygon_alone(polygon) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects([polygon], HEIGHT, WIDTH))[:, :, 0] == 1


@thorough
@given(st.lists(st.lists(polygons, min_size=1, max_size=3), min_size=1, max_size=3))
@example([[[2, 2, 9, 9, 9, 2, 2, 9]]])  # crosses itself
@example([[[-5, -5, 30, -5, 30, 30, -5, 30], [3, 3, 3, 3, 3, 3]]])  # all around the image, and a single point
def test_a_union_of_polygons_is_every_pixel_of_any(objects):
    expected = np.any([polygon_alone(polygon) for polygons in objects for polygon in polygons], axis=0)
    np.testing.assert_array_equal(union(objects), expected)


@settings(max_examples=200, deadline=None)
@given(polygons, whole_runs, st.booleans())
def test_polygons_and_run_lengths_are_united_too(polygon, mask, packed):
    runs = runs_of(mask)
    crowd = {"size": [HEIGHT, WIDTH], "counts": written(runs) if packed else runs}
    np.testing.assert_array_equal(union([[polygon], crowd]), polygon_alone(polygon) | np.array(mask))


@pytest.mark.parametrize("counts", ["", "0", "1", "\x7f", "9", "0j000", encode_mask(np.ones((4, 5), bool))["counts"]])
def test_a_row_whose_runs_do_not_fill_its_mask_is_an_error_not_what_the_memory_held(counts):
    with pytest.raises(ReferringDataError, match=r"fill its size, but .*\[4, 6\] \(height, width\).*again"):
        decode_mask({"size": [4, 6], "counts": counts})


def test_runs_whose_sum_comes_round_to_the_right_number_are_refused(monkeypatch):
    around = np.array([2**62, 2**62, 2**62, 2**62, 24])  # 2**64 + 24
    monkeypatch.setattr(schema, "decode_counts", lambda counts: around)
    with pytest.raises(ReferringDataError, match="fill its size"):
        decode_mask({"size": [4, 6], "counts": "…"})


def test_a_mask_that_claims_more_pixels_than_any_image_has_is_refused_before_memory_is_taken():
    side = 100_000
    with pytest.raises(ReferringDataError, match=r"at most .* pixels, .*\[100000, 100000\]"):
        decode_mask({"size": [side, side], "counts": "0"})


def test_of_no_segmentations_the_mask_is_empty():
    np.testing.assert_array_equal(union([]), np.zeros((HEIGHT, WIDTH), dtype=bool))


def test_parts_of_one_or_two_points_have_no_pixels():
    triangle = [2, 2, 9, 3, 5, 10]
    np.testing.assert_array_equal(union([[[1, 1], [0, 0, 8, 8], triangle, []]]), polygon_alone(triangle))


ALL = HEIGHT * WIDTH
TRIANGLE = [2, 2, 9, 3, 5, 10]


@pytest.mark.parametrize(
    "counts",
    [
        None,
        [],
        "",
        5,
        {},
        [ALL - 1],
        [ALL + 1],
        [ALL + 1, -1],
        [-1, ALL + 1],
        [ALL / 2, ALL / 2],
        [ALL, float("nan")],
        [float("inf")],
        [float("-inf"), ALL],
        [10**400],
        [2**63, -(2**63), ALL],
        [2**52] * 4096 + [ALL],  # in 64 bits the sum comes round to the right one
        [2**32 + ALL],  # as above in 32 bits
        [str(ALL)],
        [True] * ALL,
        [None, ALL],
        [[ALL]],
        ["x"],
        [ALL, "0"],
        "x",
        "0o",
        written([ALL - 1]),
        written([ALL + 1]),
        written([ALL + 1, -1]),
        written([2**32 + ALL]),
        "P" * 100_000 + "0",
        (written([0, 0, 0, 2**30]) + written([2**30]) * 99_999),
    ],
    ids=lambda counts: f"{counts!r:.30}",
)
def test_run_lengths_that_do_not_fill_their_image_are_an_error(counts):
    for parts in (1, 2):
        with pytest.raises(ReferringDataError, match=r"11 x 17 = 187 pixels, but annotation 5 has"):
            union([{"size": [HEIGHT, WIDTH], "counts": counts}] * parts)


@pytest.mark.parametrize("size", [[WIDTH, HEIGHT], [HEIGHT], [HEIGHT, WIDTH, 1], None, 187, "11", {}, [ALL, 1], []])
def test_run_lengths_of_another_size_than_the_image_are_an_error(size):
    with pytest.raises(ReferringDataError, match=r"annotation 5 is .* and its image \[11, 17\]"):
        union([{"size": size, "counts": [ALL]}])
    with pytest.raises(ReferringDataError, match=r"annotation 5 is None"):
        union([{"counts": [ALL]}])


@pytest.mark.parametrize(
    "part",
    [
        [2, 2, 9, 3, 5, 10, 4],
        [2, 2, 9, 3, 5, float("nan")],
        [2, 2, 9, 3, 5, float("inf")],
        [2, 2, 9, 3, 5, -1e9],
        [2, 2, 9, 3, 5, 1e9],
        [2, 2, 9, 3, 5, 10**400],
        [2, 2, 9, 3, 5, 171],
        ["2", "2", "9", "3", "5", "10"],
        [2, 2, 9, 3, 5, "10"],
        [True, False, True, True, False, False],
        [2, 2, 9, 3, 5, True],
        [2, 2, 9, 3, 5, None],
        [2, 2, 9, 3, 5, 1j],
        [[2, 2], [9, 3], [5, 10], [1, 1], [2, 3], [5, 4]],
        "2 2 9 3 5 10",
        {"size": [HEIGHT, WIDTH], "counts": [ALL]},
        None,
        7,
    ],
    ids=repr,
)
def test_a_polygon_that_is_none_is_an_error_beside_a_good_one_too(part):
    for polygons in ([part], [TRIANGLE, part], [part, TRIANGLE]):
        with pytest.raises(ReferringDataError, match="annotation 5 has"):
            union([polygons])


@pytest.mark.parametrize(
    "segmentation", [None, [], [[]], "polygon", 5, TRIANGLE, [[1, 1, 2, 2]], [[2, 2, 9, 3, 5]], ()], ids=repr
)
def test_a_segmentation_that_is_none_is_an_error(segmentation):
    with pytest.raises(ReferringDataError, match="annotation 5 has"):
        union([[TRIANGLE], segmentation])


@pytest.mark.parametrize("side", [0, -1, 10**9, None, 5.0, "5", True, float("nan"), [5]], ids=repr)
def test_a_size_that_no_image_has_is_an_error(side):
    for height, width in ((side, 7), (7, side)):
        for segmentations in ([], [[TRIANGLE]], [{"size": [height, width], "counts": [5]}]):
            with pytest.raises(ReferringDataError, match=r"annotation 5 has .*\(height x width\)"):
                union_of_segmentations(segmentations, height, width, "annotation 5")


@pytest.mark.parametrize(
    ("segmentations", "height", "width"),
    [
        pytest.param([[[0, 0, 600, 400] * 50_000]], 480, 640, id="a polygon of 100,000 points that jump across"),
        pytest.param([[[0, 0, 9e5, 0, 9e5, 9e5]]], 10**6, 10**6, id="an image of 10**12 pixels"),
        pytest.param([[[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9]]], 480, 640, id="a polygon far outside"),
        pytest.param([[[0, 0, 1.7e9, 0, 1.7e9, 1]]], 1, 170_000_000, id="a polygon along an image of one row"),
        pytest.param([{"size": [480, 640], "counts": [2**40]}], 480, 640, id="a run longer than memory"),
        pytest.param([{"size": [480, 640], "counts": "PPPPPP1"}], 480, 640, id="a packed run longer than memory"),
        pytest.param([{"size": [1, 5], "counts": [0] * 10**6 + [4]}], 1, 5, id="a million empty runs"),
        pytest.param([{"size": [1, 5], "counts": "0" * 10**6 + "4"}], 1, 5, id="a million packed empty runs"),
    ],
)
def test_an_absurd_segmentation_is_an_error_in_bounded_time_and_memory(segmentations, height, width):
    before, start = memory("VmRSS"), time.perf_counter()
    with pytest.raises(ReferringDataError, match=r"annotation 5 (has|is)"):
        union_of_segmentations(segmentations, height, width, "annotation 5")
    assert time.perf_counter() - start < 5
    assert before is None or memory("VmHWM") - before < 100
