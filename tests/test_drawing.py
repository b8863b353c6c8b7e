import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3dec.processing.drawing import contact_sheet, outline, overlay

GREY = Image.new("RGB", (30, 20), (90, 90, 90))
SQUARE = np.zeros((20, 30), bool)
SQUARE[5:15, 10:22] = True


def test_an_overlay_tints_inside_the_mask_and_leaves_the_rest():
    pixels = np.asarray(overlay(GREY, SQUARE, (250, 50, 90), opacity=0.5)).astype(int)
    assert (abs(pixels[6:14, 11:21] - [170, 70, 90]) <= 1).all()  # half way
    near = np.zeros((20, 30), bool)
    near[4:16, 9:23] = True
    assert (pixels[~near] == 90).all()


def test_an_outline_is_the_ring_just_inside_the_mask_on_a_dark_ring_just_outside():
    pixels = np.asarray(outline(GREY, SQUARE, "#00ff00", width=2))
    expected = np.full((20, 30, 3), 90)
    expected[4:16, 9:23] = 30
    expected[5:15, 10:22] = [0, 255, 0]
    expected[7:13, 12:20] = 90
    np.testing.assert_array_equal(pixels, expected)


def test_a_mask_that_fills_the_picture_is_outlined_along_its_frame():
    pixels = np.asarray(outline(GREY, np.ones((20, 30), bool), (0, 255, 0), width=1))
    framed = (pixels == [0, 255, 0]).all(axis=2)
    assert framed.sum() == 2 * 30 + 2 * 18
    assert not framed[1:-1, 1:-1].any()


@pytest.mark.parametrize("draw", [overlay, outline])
def test_an_empty_mask_leaves_the_picture_as_it_is(draw):
    np.testing.assert_array_equal(draw(GREY, np.zeros((20, 30), bool)), GREY)


@pytest.mark.parametrize("draw", [overlay, outline])
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_any_mode_and_masks_as_pictures_are_drawn(draw, mode):
    image, mask = GREY.convert(mode), Image.fromarray(SQUARE.astype(np.uint8) * 255)
    before = image.tobytes()
    np.testing.assert_array_equal(draw(image, mask), draw(image.convert("RGB"), SQUARE))
    assert image.tobytes() == before


@pytest.mark.parametrize("draw", [overlay, outline])
@pytest.mark.parametrize(
    ("mask", "message"),
    [(SQUARE.T, r"\(20, 30\) .* bool \(30, 20\)"), (SQUARE * 0.3, "float64"), (SQUARE[None], "1, 20, 30")],
)
def test_a_mask_that_does_not_fit_is_refused(draw, mask, message):
    with pytest.raises(ValueError, match=message):
        draw(GREY, mask)


def test_opacity_is_a_share():
    with pytest.raises(ValueError, match=r"from 0 to 1, but it is 55"):
        overlay(GREY, SQUARE, opacity=55)


def test_a_sheet_has_its_pictures_in_rows_and_columns():
    red, blue = Image.new("RGB", (100, 50), "red"), Image.new("RGB", (50, 50), "blue")
    sheet = np.asarray(
        contact_sheet([[red, "the red one"], [(blue, "IoU 0.83"), red]], titles=["a", "b"], cell_width=100)
    )
    is_red, is_blue = ((sheet == color).all(axis=2) for color in ([255, 0, 0], [0, 0, 255]))
    assert is_red.sum() == 2 * 100 * 50
    assert is_blue.sum() == 100 * 100
    assert np.argwhere(is_red).min(axis=0)[0] < np.argwhere(is_blue).min(axis=0)[0]
    assert np.argwhere(is_blue)[:, 1].max() < np.argwhere(is_red)[:, 1].max()
    text = (sheet < 100).all(axis=2)
    assert text[:, :110].any() and text[:, 110:].any()


@given(st.lists(st.text(), min_size=1, max_size=3) | st.just(["word " * 500, "x" * 3000, "\ud800\n\x00 ’é猫😀"]))
@settings(max_examples=40, deadline=None)
def test_a_sheet_takes_any_text_and_stays_inside_its_cells(texts):
    sheet = contact_sheet([[text, GREY] for text in texts], cell_width=120, font_size=14)
    assert sheet.width == 3 * 9 + 2 * 120
    assert sheet.height < 9 + len(texts) * (9 + 12 * 25)
    pixels = np.asarray(sheet)
    assert (pixels[:, :7] == 255).all()
    assert (pixels[:, 9 + 120 + 5 : 9 + 120 + 9] == 255).all()


@pytest.mark.parametrize(
    ("rows", "titles"), [([], []), ([[]], []), ([["a"], ["a", "b"]], []), ([["a", "b"]], ["one"]), ([], ["one"])]
)
def test_a_sheet_of_no_rows_or_unequal_ones_is_refused(rows, titles):
    with pytest.raises(ValueError, match="one length above 0"):
        contact_sheet(rows, titles)
