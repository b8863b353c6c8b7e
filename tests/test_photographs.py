"""The photographs that come with the package: whose they are."""

import re

import pytest
from PIL import Image

from m3dec.examples import PHOTOGRAPHS

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
