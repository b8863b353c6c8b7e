"""The one path from images and expressions to masks: each step is done once, and many at a time answer as one does."""

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline_m3dec import noise, tiny_model
from test_processing_m3dec import bert_processor, word_processor

from m3dec.processing import images
from m3dec.processing.pipeline_m3dec import ReferringImageSegmentationPipeline
from m3dec.processing.segmenter import EXPRESSIONS_AT_ONCE, Segmenter, logger

ASKED = ["the red cup", "the left cat", "big blue cup on the left"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(tiny_model(), word_processor())


def test_a_call_converts_and_resizes_the_image_once_and_reads_each_expression_once(monkeypatch, tmp_path, segmenter):
    calls = Counter()

    def counted(owner, name, amount=lambda *_, **__: 1):
        function = getattr(owner, name)

        def counting(*arguments, **options):
            calls[name] += amount(*arguments, **options)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    pipe = ReferringImageSegmentationPipeline(model=segmenter.model, processor=segmenter.processor, device="cpu")
    counted(images, "_upright_rgb")
    counted(Image.Image, "convert")
    counted(type(pipe.image_processor or pipe.processor.image_processor), "resize")
    counted(type(pipe.processor.tokenizer), "_encode_plus", lambda _, text, *__, **___: len(text))
    counted(segmenter.model.model, "get_image_features")
    Image.fromarray(noise(60, 80)).convert("L").save(tmp_path / "gray.png")
    calls.clear()
    assert len(pipe(str(tmp_path / "gray.png"), text=ASKED)) == 3
    assert calls == {"_upright_rgb": 1, "convert": 1, "resize": 1, "_encode_plus": 3, "get_image_features": 1}


def test_more_expressions_than_fit_at_once_are_answered_as_one_by_one(segmenter):
    expressions = (ASKED * EXPRESSIONS_AT_ONCE)[: EXPRESSIONS_AT_ONCE + 5]
    two = [noise(40, 60), noise(50, 30, seed=1)]
    numbers = [place % 2 for place in range(len(expressions))]
    together = list(segmenter(two, expressions, numbers))
    assert len(together) == len(expressions)
    for place in (0, 1, EXPRESSIONS_AT_ONCE - 1, EXPRESSIONS_AT_ONCE, len(expressions) - 1):
        [alone] = segmenter([two[numbers[place]]], [expressions[place]], [0])
        assert together[place]["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert np.mean(together[place]["mask"] != alone["mask"]) < 0.005


def test_remembered_images_are_not_encoded_again_and_the_latest_ones_are_kept(segmenter):
    remembering = Segmenter(segmenter.model, segmenter.processor, remembered_images=2)
    first, second, third = (noise(30, 40, seed) for seed in range(3))
    passes = []
    hook = segmenter.model.model.vision_encoder.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    with torch.inference_mode():
        expected = segmenter.encode([first])
        assert torch.equal(remembering.encode([first]), expected)
        remembering.encode([second])
        assert torch.equal(remembering.encode([first.copy()]), expected)
        remembering.encode([third])
    hook.remove()
    assert passes == [1, 1, 1, 1]
    assert [remembering.remembers(image) for image in (first, second, third)] == [True, False, True]


@pytest.mark.parametrize("make", [word_processor, bert_processor])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_expressions_are_padded_and_cut_as_the_tokenizer_does_it_itself(make, padding):
    processor = make()
    expressions = ["red cup", "the left cat", "the red cup on the left " * 9]
    ours = processor(text=expressions, padding=padding)
    theirs = processor.tokenizer(
        expressions,
        padding=padding,
        padding_side="right",
        truncation=True,
        max_length=processor.max_words,
        return_tensors="pt",
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])


@pytest.mark.parametrize("make", [word_processor, bert_processor])
def test_threads_that_share_a_processor_get_the_rows_that_one_thread_gets(make):
    processor = make()
    batches = [["red cup"] * (n % 3 + 1) + ["the left cat " * (n % 13 + 1)] for n in range(400)]
    styles = ["longest" if n % 2 else "max_length" for n in range(len(batches))]
    alone = [processor(text=batch, padding=style)["input_ids"] for batch, style in zip(batches, styles, strict=True)]
    with ThreadPoolExecutor(8) as threads:
        shared = list(
            threads.map(lambda batch, style: processor(text=batch, padding=style)["input_ids"], batches, styles)
        )
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


def test_a_processor_of_another_vocabulary_than_the_models_is_warned_of(caplog, segmenter):
    """The numbers of a smaller vocabulary's words are all in range: the masks would be about other words."""
    logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        Segmenter(segmenter.model, word_processor())
        assert not caplog.messages
        Segmenter(segmenter.model, bert_processor())
    assert ["knows 12 words, but the model has rows for 11" in message for message in caplog.messages] == [True]
