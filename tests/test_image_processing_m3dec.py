"""Images of any kind become the same tensors, whatever they came as and whichever backend."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from m3dec.processing.image_processing_m3dec import M3DecImageProcessor
from m3dec.processing.image_processing_pil_m3dec import M3DecImageProcessorPil
from m3dec.processing.images import mask_array, rgb_array
from m3dec.processing.letterbox import letterbox_box

BACKENDS = [M3DecImageProcessor, M3DecImageProcessorPil]
SMALL = {"height": 64, "width": 64}


def photo(height=37, width=53, seed=0) -> np.ndarray:
    """Smooth colours with noise on them, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([127 + 120 * np.sin(x / 7 + c) * np.cos(y / 5 - c) for c in range(3)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 8, waves.shape)
    return (waves + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixel_values_are_darknets_rgb_over_255_at_416_by_default(backend):
    values = backend()(photo(), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 416, 416) and values.dtype == torch.float32
    flat = np.full((5, 7, 3), (10, 100, 250), np.uint8)
    values = backend()(flat, return_tensors="pt")["pixel_values"]
    expected = torch.tensor([10, 100, 250])[None, :, None, None] / 255
    torch.testing.assert_close(values, expected.expand_as(values))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_and_standard_deviation_can_be_set_and_survive_saving(backend, tmp_path):
    ours = backend(size=SMALL, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.5])
    ours.save_pretrained(tmp_path)
    again = backend.from_pretrained(tmp_path)
    flat = np.full((5, 7, 3), 51, np.uint8)  # 51 / 255 = 0.2
    values = again(flat, return_tensors="pt")["pixel_values"][0, :, 0, 0]
    torch.testing.assert_close(values, torch.tensor([(0.2 - 0.5) / 0.2, (0.2 - 0.4) / 0.25, (0.2 - 0.3) / 0.5]))
    assert torch.equal(
        ours(photo(), return_tensors="pt")["pixel_values"], again(photo(), return_tensors="pt")["pixel_values"]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("turned", [np.flipud, np.fliplr, np.asfortranarray, lambda array: array[::2]])
def test_an_array_may_be_a_view_of_another(backend, turned):
    """NumPy turns an array by negative strides, which torch does not read; also one of a single row."""
    for image in (photo(), photo(1, 53)):
        view, mask = turned(image), turned(image[..., 0] > 127)
        ours, expected = (backend(size=SMALL)(*each) for each in ((view, mask), (view.copy(), mask.copy())))
        for name in ("pixel_values", "labels"):
            assert np.array_equal(ours[name], expected[name])


def between_two_pixels(side: int, size: int) -> np.ndarray:
    """Which of `size` new pixels have their centre exactly on the border of two of the `side` old ones."""
    return (2 * np.arange(size) + 1) * side % (2 * size) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 9))
def test_both_backends_agree_to_one_grey_level_and_on_every_mask_pixel_that_is_no_tie(height, width, seed):
    image = photo(height, width, seed)
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    ours, theirs = (backend(size=SMALL)(image, mask, return_tensors="pt") for backend in BACKENDS)
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() <= 1.01 / 255
    tie = between_two_pixels(height, 64)[:, None] | between_two_pixels(width, 64)
    assert torch.equal(ours["labels"][0][~tie], theirs["labels"][0][~tie])


@pytest.mark.parametrize("backend", BACKENDS)
def test_shrinking_is_antialiased(backend):
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than 64 pixels can show: they must average to grey, not alias to black or white
    values = backend(size=SMALL)(stripes, return_tensors="pt")["pixel_values"]
    assert (values - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_is_stretched_to_the_nearest_pixel_and_stays_zero_or_one(backend):
    mask = np.random.default_rng(0).random((48, 80)) < 0.5
    image = np.zeros((48, 80, 3), np.uint8)
    labels = backend(size=SMALL, image_mean=[0.5] * 3)(image, [mask, ~mask], return_tensors="pt")["labels"]
    assert labels.shape == (2, 64, 64) and labels.dtype == torch.float32
    for y in range(64):
        for x in range(64):
            expected = mask[int((y + 0.5) * 48 / 64), int((x + 0.5) * 80 / 64)]
            assert labels[0, y, x] == float(expected) and labels[1, y, x] == float(not expected)


def test_one_image_in_many_guises_gives_the_same_pixels(tmp_path):
    array = photo()
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    guises = [array, array[::-1][::-1], Image.fromarray(array), path, str(path), Image.open(path)]
    guises += [torch.from_numpy(array).permute(2, 0, 1), Image.fromarray(array).convert("RGBA")]
    for guise in guises:
        np.testing.assert_array_equal(rgb_array(guise), array)
    np.testing.assert_array_equal(rgb_array(array.transpose(2, 0, 1), input_data_format="channels_first"), array)
    np.testing.assert_array_equal(rgb_array(torch.from_numpy(array), input_data_format="channels_last"), array)


def test_a_grey_image_is_three_equal_channels_in_every_guise():
    grey = photo()[..., 0]
    for guise in [grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], Image.fromarray(grey)]:
        np.testing.assert_array_equal(rgb_array(guise), np.repeat(grey[..., None], 3, axis=-1))
    one_bit = Image.fromarray(grey > 127)
    np.testing.assert_array_equal(rgb_array(one_bit)[..., 0], (grey > 127) * 255)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_scaled_and_not_clipped(mode):
    ramp = np.linspace(0, 65535, 1000).round().reshape(1, -1)
    image = Image.frombytes(mode, (1000, 1), ramp.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    np.testing.assert_allclose(rgb_array(image)[0, :, 0], ramp[0] / 257, atol=0.51)


def test_transparent_pixels_are_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 128, 255]  # black, from invisible to opaque
    for image in [Image.fromarray(rgba), rgba]:
        np.testing.assert_allclose(rgb_array(image)[0, :, 0], [255, 127, 0], atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putdata([0, 1])
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(rgb_array(palette)[0], [[255, 255, 255], [0, 200, 0]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_array_of_four_channels_is_the_picture_that_pillow_makes_of_it(backend):
    rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    processor = backend(size=SMALL)
    expected = processor(Image.fromarray(rgba), return_tensors="pt")["pixel_values"]
    for image in [rgba, torch.from_numpy(rgba).permute(2, 0, 1)]:
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)
    with pytest.raises(ValueError, match=r"image_mean must be one number or three.*alpha"):
        processor(rgba, image_mean=[0.0] * 4, image_std=[1.0] * 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_so_that_a_path_and_an_opened_image_agree(orientation, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo(24, 40)).save(path, exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(rgb_array(path), upright)
    np.testing.assert_array_equal(rgb_array(Image.open(path)), upright)
    assert upright.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    encoding=st.fixed_dictionaries(
        {"quality": st.sampled_from([5, 75, 100]), "subsampling": st.integers(0, 2), "progressive": st.booleans()}
    ),
    kept=st.floats(0.3, 1.0),
    flipped=st.lists(st.tuples(st.floats(0.3, 0.99), st.integers(0, 255)), max_size=3),
)
def test_a_jpegs_file_is_read_as_pillow_reads_it_also_where_it_is_damaged(size, mode, encoding, kept, flipped):
    """torchvision decodes it faster; this is the proof that nobody can see which of the two did."""
    file = io.BytesIO()
    Image.fromarray(photo(*size)).convert(mode).save(file, "JPEG", **encoding)
    damaged = bytearray(file.getvalue())
    for place, value in flipped:
        damaged[int(place * len(damaged))] = value
    damaged = bytes(damaged[: int(kept * len(damaged))]) if kept < 0.9 else bytes(damaged)
    try:
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(damaged))).convert("RGB"))
    except (OSError, SyntaxError):
        with pytest.raises(ValueError, match="An image must be one that Pillow can read whole"):
            rgb_array(io.BytesIO(damaged))
    else:
        np.testing.assert_array_equal(rgb_array(io.BytesIO(damaged)), expected)


def test_a_color_jpeg_does_not_go_through_pillows_pixels(tmp_path, monkeypatch):
    Image.fromarray(photo()).save(tmp_path / "a.jpg")
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    monkeypatch.setattr(JpegImageFile, "load", None)
    np.testing.assert_array_equal(rgb_array(tmp_path / "a.jpg"), expected)


def test_a_binary_mask_may_be_bool_zero_one_or_zero_255():
    truth = np.random.default_rng(0).random((5, 7)) < 0.5
    guises = [truth, truth.astype(np.int64), truth * np.uint8(255), truth.astype(np.float32), torch.from_numpy(truth)]
    guises += [Image.fromarray(truth), Image.fromarray(truth * np.uint8(255)), torch.from_numpy(truth).bfloat16()]
    for guise in guises:
        array = mask_array(guise)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_as_one_array_is_the_list_of_its_images(backend):
    images = np.stack([photo(seed=0), photo(seed=1)])
    together, apart = (backend(size=SMALL)(x, return_tensors="pt")["pixel_values"] for x in (images, list(images)))
    assert together.shape == (2, 3, 64, 64) and torch.equal(together, apart)


def test_both_backends_have_the_same_defaults():
    ours, theirs = (backend().to_dict() for backend in BACKENDS)
    assert ours == theirs


def letterboxed_by_pil(picture: Image.Image, size: tuple[int, int], resample, border) -> tuple[np.ndarray, tuple]:
    """A PIL image pasted on a canvas of (height, width) `size`, and the (left, top, right, bottom) it covers there."""
    scale = min(Fraction(size[0], picture.height), Fraction(size[1], picture.width))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = (size[1] - width) // 2, (size[0] - height) // 2
    canvas = Image.new(picture.mode, size[::-1], border)
    canvas.paste(picture.resize((width, height), resample), (left, top))
    return np.asarray(canvas), (left, top, left + width, top + height)


def assert_letterboxed(height, width, size, seed=0):
    """Both backends give what PIL's paste gives: pixels within one grey level, every mask pixel that is no tie."""
    image = photo(height, width, seed)
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    expected, _ = letterboxed_by_pil(Image.fromarray(image), size, Image.Resampling.BILINEAR, (128, 128, 128))
    label, (left, top, right, bottom) = letterboxed_by_pil(Image.fromarray(mask), size, Image.Resampling.NEAREST, 0)
    sure = np.ones(size, bool)
    sure[top:bottom][between_two_pixels(height, bottom - top)] = False
    sure[:, left:right][:, between_two_pixels(width, right - left)] = False
    for backend, tolerance in zip(BACKENDS, [1.01 / 255, 1e-6], strict=True):
        ours = backend(size={"height": size[0], "width": size[1]}, do_letterbox=True)(image, mask, return_tensors="pt")
        assert ours["pixel_values"].shape == (1, 3, *size) and ours["pixel_values"].dtype == torch.float32
        assert ours["labels"].shape == (1, *size) and ours["labels"].dtype == torch.float32
        difference = abs(ours["pixel_values"][0].numpy() - expected.transpose(2, 0, 1) / 255)
        assert difference.max() <= tolerance
        np.testing.assert_array_equal(ours["labels"][0].numpy()[sure], label[sure])
        outside = np.ones(size, bool)
        outside[top:bottom, left:right] = False
        assert (ours["pixel_values"][0, :, outside] == torch.tensor(128 / 255)).all()
        assert not ours["labels"][0, outside].any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 200), st.integers(1, 200), st.sampled_from([(64, 64), (37, 37), (48, 80), (3, 2)]), st.integers(0, 9)
)
def test_a_letterbox_is_what_pasting_with_pil_gives_in_both_backends(height, width, size, seed):
    assert_letterboxed(height, width, size, seed)


@pytest.mark.parametrize(("height", "width"), [(1, 400), (400, 1), (64, 63), (63, 64), (128, 1), (64, 64)])
def test_a_letterbox_takes_extreme_and_almost_square_images(height, width):
    assert_letterboxed(height, width, (64, 64))


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (64, 64, (64, 64), (0, 0, 64, 64)),
        (100, 50, (64, 64), (0, 16, 64, 32)),
        (10, 20, (64, 64), (16, 0, 32, 64)),
        (64, 61, (64, 64), (0, 1, 64, 61)),  # three columns of border: one on the left, two on the right
        (1, 400, (64, 64), (31, 0, 1, 64)),
        (30, 30, (48, 80), (0, 16, 48, 48)),
        (480, 640, (416, 416), (52, 0, 312, 416)),
    ],
)
def test_the_box_of_a_letterbox_is_centred_and_keeps_proportions(height, width, size, box):
    assert letterbox_box(height, width, size) == box


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 900), st.integers(1, 900))
def test_the_box_of_a_letterbox_fits_and_touches_two_opposite_sides(height, width, canvas_height, canvas_width):
    top, left, new_height, new_width = letterbox_box(height, width, (canvas_height, canvas_width))
    scale = min(Fraction(canvas_height, height), Fraction(canvas_width, width))
    assert (new_height, new_width) == (max(1, round(height * scale)), max(1, round(width * scale)))
    assert new_height == canvas_height or new_width == canvas_width
    assert 0 <= canvas_height - (2 * top + new_height) <= 1 and 0 <= canvas_width - (2 * left + new_width) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_letterbox_is_that_of_the_image_as_it_is_displayed(backend, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo(32, 64)).save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")))
    ours = backend(size=SMALL, do_letterbox=True)
    values = ours(tmp_path / "turned.png", return_tensors="pt")["pixel_values"]
    assert torch.equal(values, ours(upright, return_tensors="pt")["pixel_values"])
    border = (values[0] == 128 / 255).all(dim=0)  # (64, 64)
    lines = border.all(dim=1) if orientation == 1 else border.all(dim=0)  # bars above and below, or at the sides
    assert lines.tolist() == [True] * 16 + [False] * 32 + [True] * 16


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_border_is_normalized_with_the_image(backend):
    normal = backend(size=SMALL, do_letterbox=True, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.5])
    values = normal(photo(10, 20), return_tensors="pt")["pixel_values"]
    expected = (torch.tensor([128 / 255] * 3) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.5])
    torch.testing.assert_close(values[0, :, 0, 0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_letterboxing_survives_saving_and_is_off_unless_asked_for(backend, tmp_path):
    assert backend().do_letterbox is False
    backend(size=SMALL, do_letterbox=True).save_pretrained(tmp_path)
    for again in BACKENDS:
        assert again.from_pretrained(tmp_path).do_letterbox is True
        assert again.from_pretrained(tmp_path, do_letterbox=False).do_letterbox is False
    loaded = backend.from_pretrained(tmp_path)
    image = photo(10, 20)
    expected = backend(size=SMALL, do_letterbox=True)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded(image, return_tensors="pt")["pixel_values"], expected)
    assert not torch.equal(backend(size=SMALL)(image, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "call", "message"),
    [
        ({}, {"do_letterbox": True}, "do_letterbox cannot change for one call"),
        ({"do_letterbox": True}, {"do_letterbox": False}, "do_letterbox cannot change for one call"),
        ({"do_letterbox": True}, {"size": {"height": 96, "width": 96}}, r"own size, \(64, 64\).*96"),
        ({"do_letterbox": True}, {"do_resize": False}, "own size.*do_resize is False"),
        ({"do_letterbox": True}, {"do_center_crop": True, "crop_size": SMALL}, "neither cropped"),
        ({"do_letterbox": True}, {"do_pad": True}, "nor padded"),
        ({}, {"do_center_crop": True, "crop_size": SMALL}, "do_center_crop is True"),
        ({"do_center_crop": True, "crop_size": SMALL}, {}, "do_center_crop is True"),
        ({}, {"do_pad": True}, "do_pad is True"),
        ({"do_letterbox": True, "size": {"shortest_edge": 64}}, {}, "height and width.*shortest_edge"),
        ({"size": {"shortest_edge": 64}}, {}, "to one size.*shortest_edge.*proportions.*do_letterbox=True"),
        ({}, {"size": {"shortest_edge": 64}}, "to one size.*shortest_edge.*proportions.*do_letterbox=True"),
    ],
)
def test_what_post_processing_would_not_undo_is_refused(backend, settings, call, message):
    with pytest.raises(ValueError, match=message):
        backend(**{"size": SMALL, **settings})(photo(), **call)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_may_repeat_the_letterbox_settings_of_its_processor(backend):
    ours = backend(size=SMALL, do_letterbox=True)
    again = ours(photo(), size=SMALL, do_letterbox=True, return_tensors="pt")["pixel_values"]
    assert torch.equal(again, ours(photo(), return_tensors="pt")["pixel_values"])
