"""Large masks are those that every pixel's probability gives, and run lengths are COCO's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from test_processing_m3dec import letterbox_processor, word_processor

from m3dec.processing import masks, processing_m3dec
from m3dec.processing.masks import interpolate, large_answer, run_lengths

THRESHOLDS = [0.5, 0.35, 0.9, 0.01, 1e-6, 1 - 1e-7]


def every_pixel(logit: torch.Tensor, height: int, width: int, threshold: float) -> tuple[np.ndarray, float]:
    """The mask and its score by the probability of every pixel."""
    probability = interpolate(logit[None], height, width)[0].sigmoid()
    mask = probability > threshold
    return mask.numpy(), float(probability[mask].mean(dtype=torch.float64)) if mask.any() else 0.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_large_mask_is_that_of_every_pixels_probability_bit_for_bit(data):
    sides = [data.draw(st.integers(1, most)) for most in (40, 40, 200, 200)]
    threshold, seed = data.draw(st.sampled_from(THRESHOLDS)), data.draw(st.integers(0, 999))
    logit = torch.randn(*sides[:2], generator=torch.Generator().manual_seed(seed))
    logit = logit * data.draw(st.sampled_from([1e-4, 1, 20, 300]))
    logit = logit.round() if data.draw(st.booleans()) else logit  # many equal ones, and zeros
    mask, score = every_pixel(logit, *sides[2:], threshold)
    answer = large_answer(logit, *sides[2:], threshold)
    np.testing.assert_array_equal(answer["mask"], mask)
    assert answer["score"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_logits_a_few_roundings_from_the_threshold_are_decided_as_their_probability_is(threshold):
    edge = np.float32(np.log(threshold / (1 - threshold)))
    roundings = np.arange(-3000, 3000, dtype=np.float32).reshape(60, 100) * np.spacing(max(np.float32(1), abs(edge)))
    nearby = torch.from_numpy(edge + roundings)
    for logit in (nearby, nearby.flip(0), torch.cat([nearby, -nearby]), nearby[::7, ::9]):
        mask, _ = every_pixel(logit, 210, 350, threshold)
        assert threshold > 0.99 or 0 < mask.mean() < 1  # there, a probability's own roundings are coarser
        np.testing.assert_array_equal(large_answer(logit, 210, 350, threshold)["mask"], mask)


@pytest.mark.parametrize("letterbox", [False, True])
def test_above_a_million_pixels_no_map_of_the_images_size_is_made_and_the_answer_stays(monkeypatch, letterbox):
    processor = letterbox_processor((96, 96)) if letterbox else word_processor()
    logits = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1)) * 5
    size = 1101, 1003
    monkeypatch.setattr(processing_m3dec, "PIXELS_AT_ONCE", 2**30)
    exact = processor.post_process_referring_segmentation(logits, [size] * 3, 0.4)
    monkeypatch.undo()
    made = []

    def watched(*arguments):
        made.append(interpolate(*arguments))
        return made[-1]

    monkeypatch.setattr(masks, "interpolate", watched)
    monkeypatch.setattr(processing_m3dec, "interpolate", watched)
    answers = processor.post_process_referring_segmentation(logits, [size] * 3, 0.4)
    assert sum(each.numel() for each in made) < 3 * size[0] * size[1] / 4
    for logit, ours, theirs in zip(interpolate(logits, *size), answers, exact, strict=True):
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=2e-3)  # of every third row and column
        assert letterbox or logit[ours["peak"]].item() == pytest.approx(logit[theirs["peak"]].item(), abs=0.3)
    without = processor.post_process_referring_segmentation(logits, [size] * 3, 0.4, return_scores=False)
    assert [sorted(answer) for answer in without] == [["mask", "peak"]] * 3


def test_a_small_mask_in_a_large_image_is_scored_by_all_its_pixels():
    logit = torch.full((30, 30), -9.0)
    logit[7, 11] = 3.0
    mask, score = every_pixel(logit, 1200, 1100, 0.5)
    answer = large_answer(logit, 1200, 1100, 0.5)
    assert 0 < mask.sum() < 2000 and answer["score"] == pytest.approx(score, abs=1e-6)
    assert large_answer(logit - 9, 1200, 1100, 0.5)["score"] == 0.0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_run_lengths_are_those_of_pycocotools(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    seed, share = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([0, 0.01, 0.1, 0.5, 0.99, 1]))
    mask = np.random.default_rng(seed).random((height, width)) < share
    theirs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert run_lengths(mask) == {"size": theirs["size"], "counts": theirs["counts"].decode()}


def test_run_lengths_of_long_runs_are_those_of_pycocotools():
    mask = np.zeros((2000, 1500), bool)
    mask[3:1999, 700:1400] = True
    mask[5, 5] = True
    theirs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert run_lengths(mask)["counts"] == theirs["counts"].decode()
