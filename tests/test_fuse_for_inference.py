"""A model fused for inference answers what it answered before, and does nothing else any more."""

import copy
import re

import pytest
import torch
from mutants import TOLERANCE, distance
from test_modeling_m3dec import (
    TINY_SWIN,
    TINY_TIMM,
    expressions,
    pictures,
    tiny_config,
    tiny_model,
    training_batch,
)
from torch import nn

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.benchmarks.benchmark_inference import as_written
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data.scenes import draw_scene

CHANGED = 2e-3  # more than rounding changes a logit, of which the shipped checkpoint's largest are about 300
BACKBONES = {
    "resnet": TINY_TIMM,
    "darknet53": {**TINY_TIMM, "backbone": "darknet53", "out_indices": [3, 4, 5]},
    "efficientnet_lite0": {**TINY_TIMM, "backbone": "tf_efficientnet_lite0"},
    "swin": TINY_SWIN,
    # Norms listed beside a convolution whose output they do not get: of a sum of three, or of others in between.
    "repvit": {**TINY_TIMM, "backbone": "repvit_m0_9", "out_indices": [1, 2, 3]},
    "xception": {**TINY_TIMM, "backbone": "xception41p"},
}
NORMS_LEFT = {"resnet": 1, "repvit": 23, "xception": 39}


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.inference_mode()
def assert_fusing_changes_nothing(model, norms_left=0):
    inputs = (pictures(2).double(), *expressions(3, 7))
    expected = model.double()(*inputs).logits
    assert len(batch_norms(model)) > norms_left
    fused = model.fuse_for_inference()
    assert fused is model
    assert len(batch_norms(model)) == norms_left
    assert expected.std() > 0.01
    assert distance(fused(*inputs).logits, expected) < TOLERANCE


@pytest.mark.parametrize("num_mask_upsamplings", [0, 1, 2, 3])
@pytest.mark.parametrize("mask_decoder", ["dynamic_kernels", "concatenated", "decoder_only"])
def test_fused_logits_are_the_same_in_every_row_of_table_iii(mask_decoder, num_mask_upsamplings):
    settings = {"mask_decoder": mask_decoder, "num_mask_upsamplings": num_mask_upsamplings}
    assert_fusing_changes_nothing(tiny_model(backbone_config=BACKBONES["efficientnet_lite0"], **settings))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_fused_logits_are_the_same_with_every_backbone(backbone):
    # The first norm of this ResNet does not stand beside its convolution, which is one of three in a stem.
    left = NORMS_LEFT.get(backbone, 0)
    assert_fusing_changes_nothing(tiny_model(backbone_config=BACKBONES[backbone]), norms_left=left)


def test_fusing_twice_changes_nothing():
    model, inputs = tiny_model(), (pictures(2), *expressions(3, 7))
    with torch.inference_mode():
        once = model.fuse_for_inference()(*inputs).logits
        twice = model.fuse_for_inference()(*inputs).logits
    assert torch.equal(once, twice)


def test_what_a_fused_model_cannot_do_any_more_is_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match=re.escape("in training. Call eval() first")):
        model.train().fuse_for_inference()
    model.eval().fuse_for_inference().eval()
    with pytest.raises(ValueError, match=r"cannot be trained: .* Load the model again"):
        model.train()
    for part in (model, model.model):
        with pytest.raises(ValueError, match=r"cannot be saved: .* before fusing"):
            part.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_fusing_a_copy_leaves_the_model_as_it_was_and_trainable():
    model = tiny_model(dropout=0.0)
    before = copy.deepcopy(model)
    copy.deepcopy(model).fuse_for_inference()
    for one in (model, before):
        one.train()(**training_batch()).loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.grad is theirs.grad is None or torch.equal(ours.grad, theirs.grad), name


@torch.inference_mode()
@pytest.mark.parametrize("num_mask_upsamplings", [0, 1, 2, 3])
def test_the_benchmark_s_upsampling_as_written_is_the_same_network(num_mask_upsamplings):
    torch.manual_seed(0)
    config = tiny_config(num_mask_upsamplings=num_mask_upsamplings)
    model = M3DecForImageSegmentation(config).eval().double()
    inputs = (pictures(2).double(), *expressions(3, 7))
    expected = model(*inputs).logits
    assert distance(as_written(model)(*inputs).logits, expected) < TOLERANCE


def test_fused_the_shipped_checkpoint_draws_the_same_masks_on_a_sample():
    assert_the_same_masks(scenes=5)


@pytest.mark.slow
def test_fused_the_shipped_checkpoint_draws_the_same_masks():
    assert_the_same_masks(scenes=70)  # 420 expressions; the smallest |logit| of their 2.7 million is 2e-4


@torch.inference_mode()
def assert_the_same_masks(scenes: int) -> None:
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT)
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    fused = copy.deepcopy(model).fuse_for_inference()
    for seed in range(scenes):
        scene = draw_scene(seed, split="test")
        inputs = processor(images=scene.image, text=[expression.sent for expression in scene.expressions])
        logits, fused_logits = model(**inputs).logits, fused(**inputs).logits
        assert (logits - fused_logits).abs().max() < CHANGED
        assert torch.equal(fused_logits > 0, logits > 0)
