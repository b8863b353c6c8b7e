"""Linear layers in 8 bits on a CPU: nearly the same masks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.hub import SCENES_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.segmenter import Segmenter


def by_torch(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def by_torchao(model: nn.Module) -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = copy.deepcopy(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images, sentences, and for each sentence the number of its image."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, split_sizes={"val": 5}, seed=3)
    rows = load_referring_dataset("refer", root=folder, dataset="scenes", split_by="scenes")["val"]
    images = {row["image_id"]: row["image"] for row in rows}
    asked = [(sentence["sent"], list(images).index(row["image_id"])) for row in rows for sentence in row["sentences"]]
    return list(images.values()), *map(list, zip(*asked, strict=True))


def masks_of(model: nn.Module, scenes) -> np.ndarray:
    segmenter = Segmenter(model, M3DecProcessor.from_pretrained(SCENES_CHECKPOINT))
    return np.stack([answer["mask"] for answer in segmenter(*scenes)])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("quantized", [by_torch, by_torchao])
def test_a_model_with_linear_layers_in_8_bits_gives_nearly_the_same_masks(quantized, scenes):
    plain = M3DecForImageSegmentation.from_pretrained(SCENES_CHECKPOINT).eval()
    model = quantized(plain)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert not any(type(module.weight) is nn.Parameter for module in linear)
    ours, theirs = masks_of(model, scenes), masks_of(plain, scenes)
    overlap = (ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))
    assert len(overlap) == 30 and overlap.mean() > 0.97
    assert (ours != theirs).any()  # it is another model
