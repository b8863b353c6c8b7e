"""Lists of images, expressions and masks become one batch, and logits become masks of the images' own sizes."""

import logging
from fractions import Fraction

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing import letterbox
from m3dec.processing.image_processing_m3dec import M3DecImageProcessor
from m3dec.processing.image_processing_pil_m3dec import M3DecImageProcessorPil
from m3dec.processing.letterbox import letterbox_box
from m3dec.processing.processing_m3dec import M3DecProcessor
from m3dec.processing.word_vectors import split_words

WORDS = ["[PAD]", "[UNK]", "the", "red", "cup", "left", "of", "a", "blue", "cat", "dog"]
SIZE = {"height": 64, "width": 64}


def word_processor(max_words=15, size=64, image_processor=M3DecImageProcessor) -> M3DecProcessor:
    """A processor over a vocabulary of a few words, as word vectors have it."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    return M3DecProcessor(image_processor(size={"height": size, "width": size}), tokenizer, max_words=max_words)


def bert_processor(max_words=20) -> M3DecProcessor:
    """A processor over a BERT tokenizer of a few pieces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "cup", "##s", "left", ".", "!"]
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})
    return M3DecProcessor(M3DecImageProcessor(size=SIZE), tokenizer, max_words=max_words)


def picture(height=30, width=40, value=0) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_one_expression_for_each_image_needs_no_image_index():
    batch = word_processor()(images=[picture(), picture(20, 10)], text=["the red cup", "cat"])
    assert sorted(batch) == ["attention_mask", "input_ids", "pixel_values"]
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["pixel_values"].dtype == torch.float32
    assert batch["input_ids"].tolist() == [[2, 3, 4], [9, 0, 0]] and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] and batch["attention_mask"].dtype == torch.int64


@pytest.mark.parametrize("images", [picture(), [picture()], Image.fromarray(picture())])
@pytest.mark.parametrize("text", [["red cup", "the cat", "dog"], [["red cup", "the cat", "dog"]]])
def test_several_expressions_about_one_image_need_no_image_index(images, text):
    batch = word_processor()(images=images, text=text)
    assert batch["pixel_values"].shape[0] == 1 and batch["input_ids"].shape == (3, 2) and "image_index" not in batch


def test_lists_of_expressions_say_by_image_index_which_image_each_is_about():
    texts = [["red cup", "the cat"], ["dog"], ["a blue cat", "cat", "left"]]
    batch = word_processor()(images=[picture(value=v) for v in (0, 100, 200)], text=texts)
    assert batch["image_index"].tolist() == [0, 0, 1, 2, 2, 2] and batch["image_index"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[3, 4, 0], [2, 9, 0], [10, 0, 0], [7, 8, 9], [9, 0, 0], [5, 0, 0]]
    one_each = word_processor()(images=[picture(), picture()], text=[["dog"], ["cat"]])
    assert "image_index" not in one_each


def test_masks_become_labels_in_the_order_of_the_expressions():
    empty, full = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    tall = np.ones((9, 5), np.uint8) * 255
    nested = word_processor()(
        images=[picture(), picture(9, 5)],
        text=[["red cup", "the cat"], ["dog"]],
        segmentation_maps=[[empty, Image.fromarray(full)], [tall]],
    )
    assert nested["labels"].shape == (3, 64, 64) and nested["labels"].dtype == torch.float32
    assert nested["labels"].mean(dim=(1, 2)).tolist() == [0, 1, 1]
    flat = word_processor()(
        images=[picture(), picture(9, 5)],
        text=[["red cup", "the cat"], ["dog"]],
        segmentation_maps=[empty, full, tall],
    )
    assert torch.equal(nested["labels"], flat["labels"])


def test_images_and_text_may_come_alone():
    processor = word_processor()
    assert list(processor(images=picture())) == ["pixel_values"]
    assert sorted(processor(text="red cup")) == ["attention_mask", "input_ids"]
    assert processor(text=[["red cup", "dog"], ["cat"]])["image_index"].tolist() == [0, 0, 1]
    assert processor(text=[["red cup", "dog"]])["image_index"].tolist() == [0, 0]  # not one image each
    assert "image_index" not in processor(text=["red cup", "dog"])


def test_padding_goes_to_the_longest_or_to_max_words():
    processor = word_processor(max_words=6)
    assert processor(text=["red cup", "dog"])["input_ids"].shape == (2, 2)
    assert processor(text=["red cup", "dog"], padding="max_length")["input_ids"].tolist()[1] == [10, 0, 0, 0, 0, 0]
    assert processor(text="dog", return_tensors="np")["input_ids"].dtype == np.int64


def test_padding_is_on_the_right_whatever_the_tokenizer_prefers():
    processor = word_processor()
    processor.tokenizer.padding_side = "left"  # the last real word is found by counting from the left
    assert processor(text=["red cup", "dog"])["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_long_expressions_are_cut_off_and_the_warning_comes_once(caplog):
    processor = word_processor(max_words=11)  # a number no other test uses: the warning is remembered
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            batch = processor(text=["the " * 12, "red"])
    assert batch["input_ids"].shape == (2, 11)
    assert len([record for record in caplog.records if "max_words=11" in record.message]) == 1


def test_a_bert_tokenizer_counts_its_special_tokens_as_words_and_gives_no_token_types():
    batch = bert_processor(max_words=5)(text=["the red cups left", "cup"])
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3], [2, 7, 3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    with pytest.raises(ValueError, match="room for at least one word"):
        bert_processor(max_words=2)


@pytest.mark.parametrize("image_processor", [M3DecImageProcessor, M3DecImageProcessorPil])
def test_saving_and_loading_keeps_max_words_and_the_image_processor(image_processor, tmp_path):
    ours = word_processor(max_words=9, size=96, image_processor=image_processor)
    ours.image_processor.image_mean = (0.5, 0.4, 0.3)
    ours.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    image_processor = image_processor.from_pretrained(tmp_path)
    again = M3DecProcessor.from_args_and_dict(
        [image_processor, ours.tokenizer], M3DecProcessor.get_processor_dict(tmp_path)[0]
    )
    assert again.max_words == 9
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    one, other = (p(images=image, text="the red cup", padding="max_length") for p in (ours, again))
    assert one["pixel_values"].shape[-1] == 96 and one["input_ids"].shape == (1, 9)
    assert all(torch.equal(one[key], other[key]) for key in one)


def bilinear_by_hand(logit: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate (h, w) to (height, width): pixel centres at half integers, the border repeated."""
    out = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * logit.shape[0] / height - 0.5, 0), logit.shape[0] - 1)
            u = min(max((x + 0.5) * logit.shape[1] / width - 0.5, 0), logit.shape[1] - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, logit.shape[0] - 1), min(u0 + 1, logit.shape[1] - 1)
            top = logit[v0, u0] * (u0 + 1 - u) + logit[v0, u1] * (u - u0)
            bottom = logit[v1, u0] * (u0 + 1 - u) + logit[v1, u1] * (u - u0)
            out[y, x] = top * (v0 + 1 - v) + bottom * (v - v0)
    return out


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 23), st.integers(1, 23), st.sampled_from([0.1, 0.35, 0.5, 0.9]), st.integers(0, 99))
def test_post_processing_interpolates_logits_then_thresholds_the_probability(height, width, threshold, seed):
    logits = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(seed)) * 3
    answers = word_processor().post_process_referring_segmentation(logits, [(height, width), (5, 3)], threshold)
    assert [answer["mask"].shape for answer in answers] == [(height, width), (5, 3)]
    interpolated = bilinear_by_hand(logits[0].double().numpy(), height, width)
    assert interpolated[answers[0]["peak"]] == pytest.approx(interpolated.max(), abs=1e-5)
    probability = 1 / (1 + np.exp(-interpolated))
    sure = np.abs(probability - threshold) > 1e-5
    assert answers[0]["mask"].dtype == bool
    np.testing.assert_array_equal(answers[0]["mask"][sure], (probability > threshold)[sure])
    inside = probability[answers[0]["mask"]]
    assert answers[0]["score"] == pytest.approx(inside.mean() if inside.size else 0.0, abs=1e-5)


def test_an_empty_mask_has_score_zero_and_no_target_size_means_the_logits_own():
    logits = torch.stack([torch.full((4, 6), -9.0), torch.full((4, 6), 9.0)]).bfloat16().requires_grad_()
    empty, full = word_processor().post_process_referring_segmentation(logits)
    assert empty["mask"].shape == (4, 6) and not empty["mask"].any() and empty["score"] == 0.0
    assert full["mask"].all() and full["score"] == pytest.approx(0.99988, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "between 0 and 1"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"threshold": float("nan")}, "between 0 and 1"),
        ({"target_sizes": [(4, 4)]}, "one .height, width. per expression, 2"),
        ({"target_sizes": [(4, 4), (0, 4)]}, "one .height, width. per expression, 2"),
        ({"target_sizes": [(4, 4), (3, 4, 4)]}, "one .height, width. per expression, 2"),
        ({"target_sizes": (40, 60)}, r"expression, 2 of them, but it is \(40, 60\). Repeat an image's size"),
    ],
)
def test_post_processing_refuses_what_would_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        word_processor().post_process_referring_segmentation(torch.zeros(2, 4, 4), **options)


@pytest.mark.parametrize("outputs", [(torch.zeros(1, 4, 4), torch.zeros(2, 3)), {"logits": None}, None])
def test_what_has_no_logits_is_named(outputs):
    """Such as the tuple that a model gives with return_dict=False."""
    with pytest.raises(ValueError, match=f"there came a {type(outputs).__name__} without logits"):
        word_processor().post_process_referring_segmentation(outputs)


def test_logits_that_are_not_numbers_are_refused():
    logits = torch.zeros(1, 4, 4)
    logits[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        word_processor().post_process_referring_segmentation(logits)


def letterbox_processor(size=64, image_processor=M3DecImageProcessor) -> M3DecProcessor:
    """`word_processor` that keeps proportions; `size` may be a pair (height, width)."""
    processor = word_processor(image_processor=image_processor)
    height, width = size if isinstance(size, tuple) else (size, size)
    processor.image_processor.size, processor.image_processor.do_letterbox = {"height": height, "width": width}, True
    return processor


def box_by_hand(height: int, width: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a letterbox of `size` that an image covers."""
    scale = min(Fraction(size[0], height), Fraction(size[1], width))
    new = [max(1, round(side * scale)) for side in (height, width)]
    starts = [(side - length) // 2 for side, length in zip(size, new, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, new, strict=True))


def pasted(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask as PIL resizes and pastes it onto a letterbox, (size) uint8, 0 on the border."""
    rows, columns = box_by_hand(*mask.shape, size)
    canvas = Image.new("L", size[::-1])
    box = (columns.stop - columns.start, rows.stop - rows.start)
    canvas.paste(
        Image.fromarray(mask.astype(np.uint8)).resize(box, Image.Resampling.NEAREST), (columns.start, rows.start)
    )
    return np.asarray(canvas)


def test_the_peak_lies_in_the_picture_and_needs_no_mask_and_is_found_where_probabilities_saturate():
    logits = np.full((32, 32), 90.0)  # on the border of the letterbox, which is not the picture
    logits[6:26] = -9.0
    logits[15, 21] = -1.0
    faint = answer(logits, 20, 32, (32, 32))
    assert (faint["peak"], faint["mask"].any()) == ((9, 21), False)
    logits[6:26] += 60
    sure = answer(logits, 20, 32, (32, 32))
    assert (sure["peak"], sure["mask"].all(), sure["score"]) == ((9, 21), True, 1.0)


def answer(logits: np.ndarray, height: int, width: int, size: tuple[int, int], threshold=0.5) -> dict:
    processor = letterbox_processor(size)
    logits = torch.from_numpy(logits).float()[None]
    return processor.post_process_referring_segmentation(logits, [(height, width)], threshold)[0]


def assert_comes_back(mask: np.ndarray, size: tuple[int, int]):
    """A mask pasted on a letterbox as logits of 9 and -9, with 9 all over the border, comes back pixel for pixel."""
    logits = np.full(size, 9.0)
    rows, columns = box_by_hand(*mask.shape, size)
    logits[rows, columns] = pasted(mask, size)[rows, columns] * 18.0 - 9
    np.testing.assert_array_equal(answer(logits, *mask.shape, size)["mask"], mask)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 5]), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_a_mask_comes_back_from_its_letterbox_at_its_size_and_at_whole_multiples(longer, factor, shorter, wide, seed):
    shape = (min(longer, shorter), longer) if wide else (longer, min(longer, shorter))
    mask = np.random.default_rng(seed).random(shape) < 0.5
    assert_comes_back(mask, (longer * factor, longer * factor))


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("height", "width", "shift"), [(32, 20, (0, 1)), (32, 20, (0, -1)), (20, 32, (1, 0)), (20, 32, (-1, 0))]
)
def test_the_test_above_notices_a_box_that_is_off_by_one_pixel(height, width, shift, factor, monkeypatch):
    mask = np.random.default_rng(0).random((height, width)) < 0.5
    assert_comes_back(mask, (32 * factor, 32 * factor))

    def shifted(*args):
        top, left, *sides = letterbox_box(*args)
        return top + shift[0], left + shift[1], *sides

    monkeypatch.setattr(letterbox, "letterbox_box", shifted)
    with pytest.raises(AssertionError):
        assert_comes_back(mask, (32 * factor, 32 * factor))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([(64, 64), (37, 37), (48, 80)]), st.integers(0, 99))
def test_a_pixel_comes_back_wherever_resampling_had_no_edge_to_blur(height, width, size, seed):
    random = np.random.default_rng(seed)
    (y0, y1), (x0, x1) = np.sort(random.integers(0, height + 1, 2)), np.sort(random.integers(0, width + 1, 2))
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    rows, columns = box_by_hand(height, width, size)
    step = [Fraction(height, rows.stop - rows.start), Fraction(width, columns.stop - columns.start)]
    y, x = np.mgrid[:height, :width]
    # A pixel is interpolated from two of the canvas, each half a step away from it at most, and each shows the centre
    # of a step: what lies further than a step and a half from every edge cannot have been touched.
    near_y = np.minimum(abs(y + 0.5 - y0), abs(y + 0.5 - y1)) <= float(step[0]) * 1.5 + 0.5
    near_x = np.minimum(abs(x + 0.5 - x0), abs(x + 0.5 - x1)) <= float(step[1]) * 1.5 + 0.5
    logits = pasted(mask, size) * 18.0 - 9
    sure = ~(near_y | near_x)
    np.testing.assert_array_equal(answer(logits, height, width, size)["mask"][sure], mask[sure])


def without_border_by_hand(logits: np.ndarray, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """`logits` (h, w) with each row and column that holds nothing but border like the nearest that holds some image."""
    for axis, box in enumerate(box_by_hand(height, width, size)):
        step = Fraction(size[axis], logits.shape[axis])  # pixels of the canvas in a row of logits
        inside = [i for i in range(logits.shape[axis]) if i * step < box.stop and (i + 1) * step > box.start]
        nearest = [min(inside, key=lambda j: abs(i - j)) for i in range(logits.shape[axis])]
        logits = logits.take(nearest, axis=axis)
    return logits


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 99),
    st.integers(1, 99),
    st.sampled_from([(32, 32), (20, 28)]),
    st.sampled_from([(8, 8), (16, 16), (32, 32), (5, 7)]),
    st.sampled_from([0.35, 0.5]),
    st.integers(0, 99),
)
def test_a_letterbox_is_undone_by_interpolating_cutting_and_interpolating(height, width, size, shape, threshold, seed):
    logits = np.random.default_rng(seed).normal(0, 3, shape)
    rows, columns = box_by_hand(height, width, size)
    canvas = bilinear_by_hand(without_border_by_hand(logits, height, width, size), *size)
    probability = 1 / (1 + np.exp(-bilinear_by_hand(canvas[rows, columns], height, width)))
    sure = np.abs(probability - threshold) > 1e-4
    ours = answer(logits, height, width, size, threshold)
    assert ours["mask"].shape == (height, width) and ours["mask"].dtype == bool
    np.testing.assert_array_equal(ours["mask"][sure], (probability > threshold)[sure])
    inside = probability[ours["mask"]]
    assert ours["score"] == pytest.approx(inside.mean() if inside.size else 0.0, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 99), st.integers(1, 99), st.sampled_from([4, 16, 32, 64, 7]), st.integers(0, 99))
def test_nothing_said_about_the_border_alone_changes_an_answer(height, width, resolution, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (resolution, resolution))
    rows, columns = box_by_hand(height, width, (64, 64))
    row, column = np.mgrid[:resolution, :resolution]
    border = ((row + 1) * 64 <= rows.start * resolution) | (row * 64 >= rows.stop * resolution)
    border |= ((column + 1) * 64 <= columns.start * resolution) | (column * 64 >= columns.stop * resolution)
    ours = answer(logits, height, width, (64, 64))
    for value in (1e4, -1e4):
        theirs = answer(np.where(border, value, logits), height, width, (64, 64))
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])
        assert ours["score"] == theirs["score"]


@pytest.mark.parametrize("image_processor", [M3DecImageProcessor, M3DecImageProcessorPil])
@pytest.mark.parametrize(("height", "width"), [(64, 41), (41, 64), (32, 15), (64, 64), (1, 64)])
def test_labels_are_in_the_frame_of_pixel_values_and_come_back_as_the_masks_they_were(image_processor, height, width):
    processor = letterbox_processor(64, image_processor)
    mask = np.random.default_rng(0).random((height, width)) < 0.5
    images, masks = [picture(height, width), picture(10, 30)], [[mask, ~mask], [np.ones((10, 30), bool)]]
    batch = processor(images=images, text=[["red cup", "dog"], ["cat"]], segmentation_maps=masks)
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["labels"].shape == (3, 64, 64)
    black = (batch["pixel_values"][0] == 0).all(dim=0)  # where the picture lies
    assert torch.equal(batch["labels"][0] + batch["labels"][1], black.float())
    sizes = [(height, width)] * 2 + [(10, 30)]
    answers = processor.post_process_referring_segmentation(batch["labels"] * 18 - 9, sizes)
    for ours, expected in zip(answers, [mask, ~mask, np.ones((10, 30), bool)], strict=True):
        np.testing.assert_array_equal(ours["mask"], expected)


def test_without_target_sizes_a_letterbox_keeps_its_border():
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    for letterboxed, stretched in zip(
        letterbox_processor().post_process_referring_segmentation(logits),
        word_processor().post_process_referring_segmentation(logits),
        strict=True,
    ):
        np.testing.assert_array_equal(letterboxed["mask"], stretched["mask"])
        assert letterboxed["score"] == stretched["score"]


@pytest.mark.parametrize("image_processor", [M3DecImageProcessor, M3DecImageProcessorPil])
def test_saving_and_loading_keeps_the_letterbox(image_processor, tmp_path):
    ours = letterbox_processor(96, image_processor)
    ours.save_pretrained(tmp_path)
    again = M3DecProcessor(image_processor.from_pretrained(tmp_path), ours.tokenizer)
    assert again.image_processor.do_letterbox is True
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    one, other = (p(images=image, text="the red cup")["pixel_values"] for p in (ours, again))
    assert torch.equal(one, other) and (one[..., 0, :] == 128 / 255).all()
    logits = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(0))
    one, other = (p.post_process_referring_segmentation(logits, [(30, 40)])[0]["mask"] for p in (ours, again))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{"do_letterbox": False}, {"size": {"height": 96, "width": 96}}])
def test_a_call_cannot_leave_the_letterbox_that_post_processing_expects(options):
    with pytest.raises(ValueError, match="post-processing would not know"):
        letterbox_processor()(images=picture(), text="cat", **options)


@pytest.mark.parametrize("text", ["", "  ", "...", "🙂", "\n", "¿?"])
def test_what_cannot_be_asked_holds_no_word(text):
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    assert not processor.holds_word(text)
    with pytest.raises(ValueError, match="at least one word"):
        processor(text=text)


@pytest.mark.parametrize("text", ["red", "7", "жёлтый", "a\ud800", "word " * 50])
def test_what_can_be_asked_holds_a_word(text):
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    assert processor.holds_word(text)
    assert processor(text=text)["input_ids"].shape[0] == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(alphabet="the mn'sd\u00ad\u200b\u200c\u200d\ufeff\ufe0fກกé❤", max_size=40))
def test_a_tokenizer_that_was_saved_before_invisible_letters_were_dropped_gives_the_words_of_a_new_one(text):
    """The shipped checkpoints have such a tokenizer: its file splits words where nothing is to be seen."""
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    words = split_words(text)
    assert processor.holds_word(text) is bool(words)
    if words:
        assert processor(text=text)["input_ids"].tolist() == processor(text=" ".join(words))["input_ids"].tolist()
        assert processor(text=text)["input_ids"].shape == (1, min(len(words), processor.max_words))


@pytest.mark.parametrize("options", [{"do_resize": False}, {"images_kwargs": {"do_resize": False}}, {"size": SIZE}])
def test_an_argument_that_would_do_nothing_to_a_text_alone_is_refused(options):
    with pytest.raises(TypeError, match=f"nothing for {next(iter(options))} to change"):
        word_processor()(text="cat", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"colour": 1, "padding": True}, "know colour. For text it takes max_length, padding, "),
        ({"text_kwargs": {"stride": 1}}, r"know text_kwargs\['stride'\]"),
        ({"images_kwargs": {"padding": True}}, r"know images_kwargs\['padding'\]"),
        ({"common_kwargs": {"size": SIZE}}, r"know common_kwargs\['size'\]"),
        ({"add_special_tokens": False, "fps": 3}, "know add_special_tokens, fps"),
    ],
)
def test_a_keyword_that_the_processor_does_not_know_is_named(options, named):
    with pytest.raises(TypeError, match=named):
        word_processor()(images=picture(), text="cat", **options)


@pytest.mark.parametrize("make", [word_processor, bert_processor])
def test_keywords_may_come_by_themselves_or_in_their_group(make):
    processor, inputs = make(), {"images": picture(value=200), "text": ["the red cup", "cup"]}
    flat = processor(**inputs, max_length=4, padding="max_length", do_rescale=False, return_tensors="np")
    groups = {
        "text_kwargs": {"max_length": 4, "padding": "max_length"},
        "images_kwargs": {"do_rescale": False},
        "common_kwargs": {"return_tensors": "np"},
    }
    grouped = processor(**inputs, **groups)
    assert flat["input_ids"].shape == (2, 4) and flat["pixel_values"].max() == 200
    assert all(isinstance(each, np.ndarray) for each in flat.values()) and sorted(flat) == sorted(grouped)
    for key in flat:
        np.testing.assert_array_equal(flat[key], grouped[key])
    with pytest.raises(ValueError, match="passed two times"):
        processor(**inputs, max_length=4, text_kwargs={"max_length": 5})


def test_padding_and_truncation_are_those_of_a_tokenizer():
    processor = word_processor(max_words=6)
    texts = ["the red cup left", "cat"]
    assert processor(text=texts, max_length=2)["input_ids"].tolist() == [[2, 3], [9, 0]]
    assert processor(text=texts, padding=True, truncation=True)["input_ids"].shape == (2, 4)
    for padding in (False, "do_not_pad"):
        rows = processor(text=texts, padding=padding, return_tensors=None)["input_ids"]
        assert rows == [[2, 3, 4, 5], [9]]
    assert processor(text=texts, truncation=False)["input_ids"].shape == (2, 4)  # nothing to cut off
    with pytest.raises(ValueError, match="more than max_length=3 words"):
        processor(text=texts, truncation=False, max_length=3)
    with pytest.raises(ValueError, match="max_length must be 1 to 6, the model's max_words, but it is 7"):
        processor(text=texts, max_length=7)
    with pytest.raises(ValueError, match=r"padding must be .* but it is 'longets'"):
        processor(text=texts, padding="longets")


def test_a_tokenizers_own_longer_max_length_is_not_the_models():
    processor = bert_processor(max_words=5)
    processor.tokenizer.init_kwargs["max_length"] = processor.tokenizer.max_length = 128  # as BERT's files have it
    assert processor(text="the red cups left", padding="max_length")["input_ids"].shape == (1, 5)
    processor.tokenizer.init_kwargs["max_length"] = processor.tokenizer.max_length = 4
    assert processor(text="the red cups left", padding="max_length")["input_ids"].shape == (1, 4)


@pytest.mark.parametrize(
    "of_several",
    [
        tuple,
        np.array,
        pandas.Series,
        lambda values: pandas.Series(values, index=[7, 3]),
        lambda values: Dataset.from_dict({"column": values})["column"],
        iter,
    ],
    ids=["tuple", "array", "Series", "Series of another index", "column", "iterator"],
)
def test_several_may_come_in_a_list_tuple_column_series_or_array(of_several, tmp_path):
    paths = [str(tmp_path / f"{value}.png") for value in (0, 200)]
    for value, path in zip((0, 200), paths, strict=True):
        Image.fromarray(picture(value=value)).save(path)
    processor = word_processor()
    expected = processor(images=paths, text=["the red cup", "cat"])
    ours = processor(images=of_several(paths), text=of_several(["the red cup", "cat"]))
    assert sorted(ours) == sorted(expected) and all(torch.equal(ours[key], expected[key]) for key in expected)
    about_one = processor(images=paths[1], text=of_several(["the red cup", "cat"]))
    assert torch.equal(about_one["input_ids"], expected["input_ids"]) and len(about_one["pixel_values"]) == 1
    nested = processor(images=paths, text=[of_several(["cat", "dog"]), of_several(["a cat", "red"])])
    assert nested["image_index"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("make", [word_processor, bert_processor])
def test_calls_leave_the_fingerprint_by_which_datasets_knows_a_processor(make):
    """By it `Dataset.map` finds in its cache what the same processor made before."""
    processor, fingerprint = make(), Hasher.hash(make())
    for options in ({}, {"max_length": 4}, {"padding": "max_length"}):
        processor(text=["the red cup", "a dog left of the blue cat"], **options)
        assert Hasher.hash(processor) == fingerprint
