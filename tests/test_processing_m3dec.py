"""Lists of images, expressions and masks become one batch, and logits become masks of the images' own sizes."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from m3dec.processing.image_processing_m3dec import M3DecImageProcessor
from m3dec.processing.image_processing_pil_m3dec import M3DecImageProcessorPil
from m3dec.processing.processing_m3dec import M3DecProcessor

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
    probability = 1 / (1 + np.exp(-bilinear_by_hand(logits[0].double().numpy(), height, width)))
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
    ],
)
def test_post_processing_refuses_what_would_mean_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        word_processor().post_process_referring_segmentation(torch.zeros(2, 4, 4), **options)


def test_logits_that_are_not_numbers_are_refused():
    logits = torch.zeros(1, 4, 4)
    logits[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        word_processor().post_process_referring_segmentation(logits)
