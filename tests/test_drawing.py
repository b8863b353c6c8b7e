import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageOps

from m3dec.processing.drawing import (
    MASK_COLORS,
    attention_sheet,
    contact_sheet,
    cut_out,
    heat_map,
    outline,
    overlay,
    overlay_masks,
)

GRAY = Image.new("RGB", (30, 20), (90, 90, 90))
SQUARE = np.zeros((20, 30), bool)
SQUARE[5:15, 10:22] = True


def test_an_overlay_tints_inside_the_mask_and_leaves_the_rest():
    pixels = np.asarray(overlay(GRAY, SQUARE, (250, 50, 90), opacity=0.5)).astype(int)
    assert (abs(pixels[6:14, 11:21] - [170, 70, 90]) <= 1).all()  # half way
    near = np.zeros((20, 30), bool)
    near[4:16, 9:23] = True
    assert (pixels[~near] == 90).all()


def test_an_outline_is_the_ring_just_inside_the_mask_on_a_dark_ring_just_outside():
    pixels = np.asarray(outline(GRAY, SQUARE, "#00ff00", width=2))
    expected = np.full((20, 30, 3), 90)
    expected[4:16, 9:23] = 30
    expected[5:15, 10:22] = [0, 255, 0]
    expected[7:13, 12:20] = 90
    np.testing.assert_array_equal(pixels, expected)


def test_a_mask_that_fills_the_image_is_outlined_along_its_frame():
    pixels = np.asarray(outline(GRAY, np.ones((20, 30), bool), (0, 255, 0), width=1))
    framed = (pixels == [0, 255, 0]).all(axis=2)
    assert framed.sum() == 2 * 30 + 2 * 18
    assert not framed[1:-1, 1:-1].any()


@pytest.mark.parametrize("draw", [overlay, outline])
def test_an_empty_mask_leaves_the_image_as_it_is(draw):
    np.testing.assert_array_equal(draw(GRAY, np.zeros((20, 30), bool)), GRAY)


@pytest.mark.parametrize("draw", [overlay, outline])
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_images_of_any_mode_and_masks_as_images_are_drawn(draw, mode):
    image, mask = GRAY.convert(mode), Image.fromarray(SQUARE.astype(np.uint8) * 255)
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
        draw(GRAY, mask)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_a_photograph_is_drawn_as_it_is_displayed(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(1800, dtype=np.uint8).reshape(20, 30, 3)).save(tmp_path / "a.png", exif=exif)
    photo = Image.open(tmp_path / "a.png")
    upright = ImageOps.exif_transpose(photo)
    mask = np.zeros((upright.height, upright.width), bool)
    mask[3:9, 5:12] = True
    for draw in (overlay, outline, cut_out, lambda image, mask: overlay_masks(image, [mask])):
        assert np.array_equal(draw(photo, mask), draw(upright, mask))
    assert np.array_equal(heat_map(photo, mask.astype(float)), heat_map(upright, mask.astype(float)))
    assert np.array_equal(attention_sheet(photo, np.eye(4), "abcd"), attention_sheet(upright, np.eye(4), "abcd"))


def test_opacity_is_a_share():
    with pytest.raises(ValueError, match=r"from 0 to 1, but it is 55"):
        overlay(GRAY, SQUARE, opacity=55)


def test_a_sheet_has_its_images_in_rows_and_columns():
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
    sheet = contact_sheet([[text, GRAY] for text in texts], cell_width=120, font_size=14)
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


def test_masks_on_one_image_have_a_color_each_and_every_edge_stays_visible():
    first, second = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    first[2:12, 2:14], second[8:18, 10:26] = True, True  # they overlap
    colors = [(250, 50, 90), (0, 200, 0)]
    pixels = np.asarray(overlay_masks(GRAY, [first, second], colors, opacity=0.5)).astype(int)
    assert (abs(pixels[4:7, 4:12] - [170, 70, 90]) <= 1).all()  # half way to the first's color
    assert (abs(pixels[13:17, 15:25] - [45, 145, 45]) <= 1).all()
    assert (pixels[9:11, 13] == colors[0]).all()  # the first's edge, inside the second
    assert (pixels[8, 10:26] == colors[1]).all()
    np.testing.assert_array_equal(overlay_masks(GRAY, [first], colors), overlay(GRAY, first, colors[0]))
    np.testing.assert_array_equal(overlay_masks(GRAY, []), GRAY)


def test_more_masks_than_colors_are_refused():
    with pytest.raises(ValueError, match="9 masks and 8 colors"):
        overlay_masks(GRAY, [SQUARE] * 9)


# Linear RGB to what dichromats see of it: Viénot, Brettel and Mollon 1999.
DICHROMATS = {
    "nobody": np.eye(3),
    "protanope": np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.0040, -0.0040, 1]]),
    "deuteranope": np.array([[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]]),
}


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_the_colors_of_masks_are_far_apart_for_everybody(eyes):
    rgb = np.array([ImageColor.getrgb(color) for color in MASK_COLORS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (linear @ DICHROMATS[eyes].T).clip(0) @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])  # fmt: skip # noqa: E501
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2)]
    assert min(distances) > 10  # 2.3 is a just noticeable difference


def test_the_alpha_of_a_cut_out_is_the_mask_and_nothing_of_the_image_is_left_outside():
    image = Image.fromarray(np.random.default_rng(0).integers(1, 256, (20, 30, 3), np.uint8))
    cut = np.asarray(cut_out(image, SQUARE))
    np.testing.assert_array_equal(cut[..., 3], SQUARE * 255)
    np.testing.assert_array_equal(cut[SQUARE][:, :3], np.asarray(image)[SQUARE])
    assert not cut[~SQUARE].any()


RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(20, axis=0)


@pytest.mark.parametrize("opacity", [0.6, 1.0])
def test_a_heat_map_is_the_lighter_the_higher_the_probability(opacity):
    image = Image.new("RGB", (256, 20), (90, 140, 30))
    drawn = heat_map(image, RAMP, opacity, with_bar=False)
    lightness = np.asarray(drawn).astype(int) @ [299, 587, 114]
    assert (lightness[:, 4:] > lightness[:, :-4]).all()  # colors are rounded, so neighbours may be alike


def test_a_heat_map_has_one_scale_for_every_image():
    ramp = np.asarray(heat_map(GRAY.resize((256, 20)), RAMP, with_bar=False))
    flat = np.asarray(heat_map(GRAY, np.full((20, 30), RAMP[0, 80]), with_bar=False))
    assert (flat == ramp[0, 80]).all()


def test_a_heat_map_keeps_the_image_in_gray_and_its_bar_shows_the_colors_of_0_to_1():
    image = Image.new("RGB", (256, 20), (90, 140, 30))
    gray = np.asarray(image.convert("L"))[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(heat_map(image, RAMP, opacity=0.0, with_bar=False), gray)
    drawn = np.asarray(heat_map(image, RAMP, opacity=1.0)).astype(int)
    assert drawn.shape[0] > 20 and drawn.shape[1] == 256
    assert (drawn[:20] == drawn[0]).all()  # at full opacity the ramp has the bar's own colors
    assert (abs(drawn[20:] - drawn[0]) <= 1).all(axis=(1, 2)).sum() == 10
    assert heat_map(GRAY.resize((1, 1)), np.ones((1, 1))).width == 120


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (np.where(SQUARE, np.nan, 0.5), "from nan to nan"),
        (SQUARE * 1.5, r"from 0\.0 to 1\.5"),
        (SQUARE - 0.5, r"from -0\.5"),
        (SQUARE, "bool"),
        (SQUARE.T * 0.5, r"\(30, 20\)"),
    ],
)
def test_what_is_no_probability_of_this_image_is_refused(probability, message):
    with pytest.raises(ValueError, match=message):
        heat_map(GRAY, probability)


def attention(*brightest: int) -> np.ndarray:
    """Scores (T, 9) of words that each look at one pixel of a 3 x 3 grid."""
    return np.eye(9, dtype=np.float32)[list(brightest)] * 20 - 7


def runs(dark: np.ndarray) -> list[int]:
    """Where the runs of more than 50 True begin."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], dark, [False]]).astype(int)))
    return [int(start) for start, end in zip(changes[::2], changes[1::2], strict=True) if end - start > 50]


def lightest_cells(sheet: Image.Image, width: int = 90) -> list[list[int]]:
    """The number, in reading order, of the lightest ninth of each map on a sheet, row by row."""
    light = np.asarray(sheet.convert("L")).astype(int)
    tops = runs((light < 250).mean(axis=1) > 0.4)
    lefts = runs((light[tops[0] + 5 : tops[0] + width - 5] < 250).all(axis=0))
    maps = [[light[top : top + width, left : left + width] for left in lefts] for top in tops]
    third = width // 3
    return [[int(one.reshape(3, third, 3, third).mean(axis=(1, 3)).argmax()) for one in row] for row in maps]


def test_an_attention_sheet_is_light_where_each_word_looks_in_each_layer():
    image = Image.new("RGB", (90, 90), (60, 60, 60))
    sheet = attention_sheet(image, [attention(0, 5), attention(7, 5)], ["red", "mug"], cell_width=90)
    first, second = lightest_cells(sheet)
    assert first[:2] == [0, 7] and len(first) == 3
    assert second == [5, 5, 5]  # the last is the mean of both layers
    one_layer = attention_sheet(image, attention(0, 5), ["red", "mug"], cell_width=90)
    assert lightest_cells(one_layer) == [[0], [5]]
    assert one_layer.width < sheet.width


def test_an_attention_sheet_takes_any_words():
    words = ["$x_1$", "a\x00b\n\ud800", "a_very_long_word_" * 20]
    sheet = attention_sheet(GRAY, np.zeros((3, 9)), words)
    assert sheet.width > attention_sheet(GRAY, np.zeros((3, 9)), "abc").width + 1000  # not cut


def test_an_attention_sheet_shows_the_softmax_so_a_constant_changes_nothing():
    scores = np.random.default_rng(0).normal(size=(2, 3, 16))
    words, shift = ["the", "red", "mug"], np.array([300.0, -4.0])[:, None, None]
    np.testing.assert_array_equal(attention_sheet(GRAY, scores, words), attention_sheet(GRAY, scores + shift, words))


@pytest.mark.parametrize(
    ("scores", "words", "message"),
    [
        (np.zeros((2, 8)), ["a", "b"], r"\(2, 8\)"),
        (np.zeros((2, 9)), ["a"], "1 words"),
        (np.zeros((1, 1, 2, 9)), ["a", "b"], r"\(1, 1, 2, 9\)"),
        (np.zeros((0, 9)), [], "0 words"),
        (np.full((1, 9), np.nan), ["a"], "finite"),
    ],
)
def test_attention_that_is_no_grid_for_each_word_is_refused(scores, words, message):
    with pytest.raises(ValueError, match=message):
        attention_sheet(GRAY, scores, words)
