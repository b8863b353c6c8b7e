"""Whatever comes in: a right result, or an error that names the input and says what to do. Never a NaN or a wrong size.

One table for pictures, one for expressions and one for batches; each row says what must come out.
"""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline_m3dec import tiny_model
from test_processing_m3dec import bert_processor, word_processor

from m3dec.processing.pipeline_m3dec import ReferringImageSegmentationPipeline


@pytest.fixture(scope="module")
def pipe() -> ReferringImageSegmentationPipeline:
    return ReferringImageSegmentationPipeline(model=tiny_model(), processor=word_processor(), device="cpu")


def photo(height=40, width=60) -> Image.Image:
    """Left half red, right half blue."""
    array = np.zeros((height, width, 3), np.uint8)
    array[:, : width // 2, 0] = array[:, width // 2 :, 2] = 250
    return Image.fromarray(array)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def written(path, data: bytes):
    path.write_bytes(data)
    return path


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    whole = saved(Image.fromarray(noise), path).read_bytes()
    return written(path, whole[: len(whole) // 2])


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: displayed 40 wide and 60 high
    return saved(photo(), path, exif=exif, quality=95)


def animated(path):
    frames = [photo(), Image.new("RGB", (60, 40), "green"), Image.new("RGB", (60, 40), "white")]
    return saved(frames[0], path, save_all=True, append_images=frames[1:])


def bomb(path):
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    data = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return written(path, b"\x89PNG\r\n\x1a\n" + b"".join(data))


def sixteen_bit(path):
    ramp = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    return saved(Image.fromarray(ramp), path)


def palette(path):
    return saved(photo().quantize(4), path, transparency=0)


# name: (how the file is made, the (width, height) of its mask)
GOOD_PICTURES = {
    "one pixel": (lambda p: saved(photo(1, 1), p / "a.png"), (1, 1)),
    "one row of 10,000": (lambda p: saved(photo(1, 10_000), p / "a.png"), (10_000, 1)),
    "one column of 10,000": (lambda p: saved(photo(10_000, 1), p / "a.png"), (1, 10_000)),
    "grey": (lambda p: saved(photo().convert("L"), p / "a.png"), (60, 40)),
    "grey with alpha": (lambda p: saved(photo().convert("LA"), p / "a.png"), (60, 40)),
    "one bit": (lambda p: saved(photo().convert("1"), p / "a.png"), (60, 40)),
    "palette with transparency": (lambda p: palette(p / "a.png"), (60, 40)),
    "RGBA": (lambda p: saved(photo().convert("RGBA"), p / "a.png"), (60, 40)),
    "CMYK": (lambda p: saved(photo().convert("CMYK"), p / "a.jpg"), (60, 40)),
    "16 bits": (lambda p: sixteen_bit(p / "a.png"), (60, 40)),
    "EXIF-rotated": (lambda p: turned(p / "a.jpg"), (40, 60)),
    "animated": (lambda p: animated(p / "a.gif"), (60, 40)),
}

# name: (how the input is made, what the error says)
BAD_PICTURES = {
    "truncated": (lambda p: truncated(p / "a.jpg"), r"a\.jpg.*truncated.*complete"),
    "zero bytes": (lambda p: written(p / "a.jpg", b""), r"a\.jpg.*is complete and is an image"),
    "not an image": (lambda p: written(p / "a.jpg", b"hello, world" * 99), r"a\.jpg.*is an image"),
    "HEIC": (lambda p: written(p / "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), r"a\.heic.*pillow-heif"),
    "missing": (lambda p: p / "a.jpg", r"a\.jpg.*No such file.*Check that the file exists"),
    "a folder": (lambda p: p, "Check that the file exists"),
    "decompression bomb": (lambda p: bomb(p / "a.png"), r"a\.png.*smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"),
    "opened and truncated": (lambda p: Image.open(truncated(p / "a.jpg")), r"a\.jpg.*truncated.*complete"),
    "floats": (lambda p: np.random.rand(9, 9, 3), "float64.*convert it to uint8"),
    "five channels": (lambda p: np.zeros((9, 9, 5), np.uint8), r"1, 3 or 4 channels.*\(9, 9, 5\)"),
    "channels on the other side": (lambda p: np.zeros((3, 9, 9), np.uint8), r"\(3, 9, 9\).*input_data_format"),
    "no pixels": (lambda p: np.zeros((0, 9, 3), np.uint8), r"at least one pixel.*\(0, 9, 3\)"),
    "32-bit integers": (lambda p: Image.new("I", (9, 9)), "scale it to 8 bits"),
    "None": (lambda p: None, "NoneType"),
    "bytes": (lambda p: b"\x89PNG", "io.BytesIO"),
    "a number": (lambda p: 3, "of type int"),
}


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_an_unusual_picture_gets_a_mask_of_its_own_size(pipe, name, tmp_path):
    make, size = GOOD_PICTURES[name]
    path = make(tmp_path)
    values = pipe.processor(images=path)["pixel_values"]
    assert values.isfinite().all() and values.min() >= 0 and values.max() <= 1
    [by_path] = pipe(path, text="the red cup")
    assert by_path["mask"].size == size and np.isfinite(by_path["score"])
    with Image.open(path) as opened:
        assert pipe(opened, text="the red cup") == [by_path]


def test_a_turned_picture_is_answered_upright(pipe, tmp_path):
    values = pipe.processor(images=turned(tmp_path / "turned.jpg"))["pixel_values"][0]
    red, blue = values[0].mean(dim=1), values[2].mean(dim=1)  # by row: the left half has become the upper one
    assert (red[:28] > 0.9).all() and (blue[36:] > 0.9).all()


def test_an_animated_picture_is_its_first_frame(pipe, tmp_path):
    values = pipe.processor(images=animated(tmp_path / "a.gif"))["pixel_values"]
    torch.testing.assert_close(values, pipe.processor(images=photo())["pixel_values"], atol=0.03, rtol=0)


def test_sixteen_bits_keep_all_their_greys(pipe, tmp_path):
    values = pipe.processor(images=sixteen_bit(tmp_path / "a.png"))["pixel_values"]
    assert values.mean() == pytest.approx(0.5, abs=0.01) and values[0, :, 0].max() < 0.05


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_gets_an_error_that_names_it(pipe, name, tmp_path):
    make, message = BAD_PICTURES[name]
    picture = make(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        pipe(picture, text="the red cup")
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        pipe.processor(images=[photo(), picture], text=["cup", "dog"])
    assert "images[1]" in str(error.value)


GOOD_EXPRESSIONS = {
    "10,000 characters": "the red cup left of " * 500,
    "one word of 10,000 characters": "x" * 10_000,
    "only unknown words": "zyzzyva qwertz",
    "emoji": "🔴☕",
    "emoji of several code points": "👩‍🚀",
    "right to left": "הכוס האדומה",
    "right to left with marks": "\u202bالكأس الحمراء\u202c",
    "a word and a NUL": "red\0 cup",
    "line breaks": "the\nred\r\n\tcup",
    "capitals and punctuation": "The RED cup!!!",
    "digits": "42",
    "a lone surrogate": "red \ud800 cup",
    "combining characters": "cafe\u0301",
}
BAD_EXPRESSIONS = {
    "empty": "",
    "blank": " \t\n\u00a0",
    "punctuation": "?!... --",
    "NUL": "\0\0",
    "marks": "\u202b\u200b",
}


@pytest.mark.parametrize("name", GOOD_EXPRESSIONS)
def test_an_unusual_expression_gets_a_mask(pipe, name):
    [answer] = pipe(photo(), text=GOOD_EXPRESSIONS[name])
    assert answer["label"] == GOOD_EXPRESSIONS[name]
    assert answer["mask"].size == (60, 40) and np.isfinite(answer["score"])
    for processor in (pipe.processor, bert_processor()):
        batch = processor(text=GOOD_EXPRESSIONS[name])
        assert 1 <= batch["input_ids"].shape[1] <= processor.max_words and batch["attention_mask"].all()


@pytest.mark.parametrize("name", BAD_EXPRESSIONS)
@pytest.mark.parametrize("make_processor", [word_processor, bert_processor])
def test_an_expression_without_a_word_gets_an_error(name, make_processor):
    with pytest.raises(ValueError, match=r"at least one word.*holds none.*Name the object"):
        make_processor()(images=photo(), text=["the red cup", BAD_EXPRESSIONS[name]])


def test_an_unknown_word_is_the_unknown_token():
    assert word_processor()(text="zyzzyva cup")["input_ids"].tolist() == [[1, 4]]


TRUE = np.ones((40, 60), bool)
BAD_BATCHES = {
    "nothing": ({}, "Images or text are needed"),
    "masks without text": ({"images": photo(), "segmentation_maps": TRUE}, "text is missing"),
    "masks without images": ({"text": "cup", "segmentation_maps": TRUE}, "images is missing"),
    "no images": ({"images": [], "text": []}, "list of images is empty"),
    "no text": ({"images": photo(), "text": []}, "Give at least one"),
    "fewer texts": ({"images": [photo()] * 3, "text": ["cup", "dog"]}, "3 images and 2 expressions.*list of expr"),
    "one text, two images": ({"images": [photo()] * 2, "text": "cup"}, "2 images and 1 expressions"),
    "fewer lists": ({"images": [photo()] * 3, "text": [["cup"], ["dog"]]}, "3 images and 2 lists of expressions"),
    "two lists, one image": ({"images": photo(), "text": [["cup"], ["dog"]]}, "1 images and 2 lists of expressions"),
    "an empty list": ({"images": [photo()] * 2, "text": [["cup"], []]}, "empty. Leave that image out"),
    "lists and strings": ({"images": [photo()] * 2, "text": [["cup"], "dog"]}, "strings only.*of type list"),
    "None among texts": ({"images": [photo()] * 2, "text": ["cup", None]}, "strings only.*NoneType"),
    "None in a list": ({"images": photo(), "text": [["cup", None]]}, "strings only.*NoneType"),
    "None among images": ({"images": [photo(), None], "text": ["cup", "dog"]}, r"images\[1\] is of type NoneType"),
    "a number for text": ({"images": photo(), "text": 7}, "must be an expression"),
    "mask of another size": ({"segmentation_maps": TRUE.T}, r"\(60, 40\) and its image \(40, 60\)"),
    "mask of three channels": ({"segmentation_maps": [np.ones((40, 60, 3))]}, r"\(40, 60, 3\).*one \(H, W\) mask"),
    "None for a mask": ({"segmentation_maps": [None]}, r"segmentation_maps\[0\] is of type NoneType"),
    "RGB mask": ({"segmentation_maps": photo()}, r"\(40, 60, 3\)"),
    "mask with labels": ({"segmentation_maps": np.arange(2400).reshape(40, 60) % 3}, "holds 0, 1, 2.*object_id"),
    "mask with 0, 1 and 255": ({"segmentation_maps": TRUE * np.tile([0, 1, 255], 20)}, "holds 0, 1, 255"),
    "mask of probabilities": ({"segmentation_maps": TRUE * 0.5}, "holds 0.5.*mask > 127"),
    "mask with NaN": ({"segmentation_maps": TRUE * np.nan}, "holds nan"),
    "more masks": ({"segmentation_maps": [TRUE, TRUE]}, "1 expressions and 2 segmentation maps"),
    "no masks": ({"segmentation_maps": []}, "1 expressions and 0 segmentation maps"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_does_not_fit_together_gets_an_error_that_says_how_it_would(name):
    inputs, message = BAD_BATCHES[name]
    if set(inputs) == {"segmentation_maps"}:
        inputs = {"images": photo(), "text": "cup", **inputs}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        word_processor()(**inputs)


def test_the_mask_of_a_turned_picture_must_be_in_its_upright_frame(tmp_path):
    path = turned(tmp_path / "turned.jpg")
    upright = np.zeros((60, 40), bool)
    upright[:30] = True
    labels = word_processor()(images=path, text="red", segmentation_maps=upright)["labels"]
    assert labels[0, :32].all() and not labels[0, 32:].any()
    with pytest.raises(ValueError, match=r"EXIF.*\(40, 60\) and its image \(60, 40\)"):
        word_processor()(images=path, text="red", segmentation_maps=upright.T)
