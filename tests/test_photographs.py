"""The photographs that come with the package: whose they are, and what its checkpoint finds in them."""

import re

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from m3dec.examples import PHOTOGRAPHS
from m3dec.hub import PHOTOS_CHECKPOINT

IMAGES = sorted(PHOTOGRAPHS.glob("*.jpg"))
# File, what it shows, by, license, original, what was changed.
ROWS = re.findall(r"^\| (\S+\.\w+) " + r"\| ([^|]+) " * 5 + r"\|$", (PHOTOGRAPHS / "SOURCES.md").read_text(), re.M)


def test_sources_has_one_line_for_each_photograph_and_for_nothing_else():
    there = [path.name for path in sorted(PHOTOGRAPHS.iterdir()) if path.name != "SOURCES.md"]
    assert [row[0] for row in ROWS] == there == [path.name for path in IMAGES]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_photograph_is_free_to_redistribute(row):
    _, _, by, license_, original, changed = row
    assert license_ in ("public domain", "CC0 1.0")
    assert by and "skimage.data." in original and "JPEG" in changed


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_each_photograph_is_small_and_says_nothing_about_a_camera_or_a_person(path):
    with Image.open(path) as image:
        assert max(image.size) <= 480 and path.stat().st_size < 100_000
        assert not image.getexif() and "icc_profile" not in image.info


# Image, expression, a point on the thing, and points beside it: shares of the width and the height.
THINGS = [
    ("cat.jpg", "the cat", (0.5, 0.5), [(0.98, 0.02), (0.98, 0.98)]),
    ("coffee.jpg", "cup in the middle", (0.48, 0.28), [(0.9, 0.2), (0.05, 0.95)]),
    ("astronaut.jpg", "the woman", (0.44, 0.22), [(0.05, 0.26)]),
    ("astronaut.jpg", "her hair", (0.42, 0.07), [(0.05, 0.26), (0.44, 0.7)]),
    ("photographer.jpg", "the man", (0.2, 0.45), [(0.86, 0.81), (0.9, 0.1)]),
    ("photographer.jpg", "his hair", (0.38, 0.15), [(0.2, 0.6), (0.9, 0.1)]),
]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("referring-image-segmentation", model=PHOTOS_CHECKPOINT, device="cpu")


@pytest.mark.parametrize(("name", "expression", "inside", "outside"), THINGS, ids=[thing[1] for thing in THINGS])
def test_what_an_expression_means_is_covered_and_what_is_beside_it_is_not(pipe, name, expression, inside, outside):
    [answer] = pipe(PHOTOGRAPHS / name, text=expression)
    mask = np.asarray(answer["mask"]) > 0
    height, width = mask.shape

    def is_covered(point):
        x, y = point
        return bool(mask[int(y * height), int(x * width)])

    assert is_covered(inside)
    assert [point for point in outside if is_covered(point)] == []


@pytest.mark.parametrize(("name", "expression"), [("cat.jpg", "the bicycle"), ("rocket.jpg", "the boat")])
def test_where_a_thing_is_not_there_nothing_is_found(pipe, name, expression):
    [answer] = pipe(PHOTOGRAPHS / name, text=expression)
    assert not np.asarray(answer["mask"]).any()
