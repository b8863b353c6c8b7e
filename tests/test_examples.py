"""The programs, run as a user runs them: as processes, on real files, offline."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from transformers import pipeline

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples import PHOTOGRAPHS, quickstart
from m3dec.examples.evaluation.loop import evaluate
from m3dec.examples.evaluation.tables import by_kind, text_table
from m3dec.examples.training.parts import collate, normalized
from m3dec.examples.training.recipe import RECIPES, parse_recipe, read_recipe
from m3dec.hub import SCENES_CHECKPOINT
from m3dec.processing import segmenter
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import draw_scene, write_scenes
from m3dec.processing.referring_data.schema import decode_mask, encode_mask

ALL_RECIPES = sorted(RECIPES.glob("**/*.yaml"))
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TINY = {
    "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet10t", "out_indices": [2, 3, 4]},
    "image_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "word_vector_size": 8,
    "freeze_word_vectors": False,
    "mask_decoder_channels": 8,
}


def run(*arguments, module="m3dec.examples.train", launcher=(), cwd=None, timeout=600) -> str:
    """The program's output; its failure is the test's."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder where train.py has taken four steps on freshly drawn scenes."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = {
        "output_dir": str(folder / "run"),
        "data_root": str(folder / "data"),
        "scenes": {"train": 12, "val": 4},
        "max_train_steps": 4,
        "eval_steps": 2,
        "per_device_train_batch_size": 3,
        "expressions_per_image": 2,
        "cpu": True,
        "model": TINY,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(folder / "recipe.yaml")
    return folder


def test_training_leaves_two_complete_folders_and_its_figures(trained):
    for name in ("best", "last"):
        M3DecForImageSegmentation.from_pretrained(trained / "run" / name)
        M3DecProcessor.from_pretrained(trained / "run" / name)
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["figures"]["all"]["count"] == 4 * 6
    assert not list((trained / "run").glob("*.tmp"))


def test_training_goes_on_from_a_trained_model(trained, tmp_path):
    last = trained / "run" / "last"
    flags = ("--output_dir", tmp_path, "--max_train_steps", "1", "--learning_rate", "0", "--weight_decay", "0")
    output = run(trained / "recipe.yaml", *flags, "--model_name_or_path", last)
    assert f"going on from {last}" in output
    before, after = (M3DecForImageSegmentation.from_pretrained(folder) for folder in (last, tmp_path / "last"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_training_goes_on_at_another_image_size(trained, tmp_path):
    flags = ("--output_dir", tmp_path, "--max_train_steps", "1", "--model_name_or_path", trained / "run" / "last")
    run(trained / "recipe.yaml", *flags, "--model.image_size", "96")
    model = M3DecForImageSegmentation.from_pretrained(tmp_path / "last")
    processor = M3DecProcessor.from_pretrained(tmp_path / "last")
    pixel_values = processor(images=draw_scene(seed=3).image, text="the ring").pixel_values
    assert pixel_values.shape[-1] == model.config.image_size == 96


def test_two_processes_train_and_count_every_validation_sentence_once(trained, tmp_path):
    flags = ("--output_dir", tmp_path, "--max_train_steps", "2", "--data_root", trained / "data")
    output = run(trained / "recipe.yaml", *flags, launcher=TWO_PROCESSES)
    assert "2 processes" in output
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["figures"]["all"]["count"] == 4 * 6


def test_evaluation_of_a_saved_model_repeats_the_figures_of_training(trained, tmp_path):
    figures = tmp_path / "figures.json"
    where = ("--data_root", trained / "data", "--dataset", "scenes", "--split_by", "scenes", "--split", "val")
    flags = ("--json", figures, "--confidence", "0.9")
    output = run("--model", trained / "run" / "last", *where, *flags, module="m3dec.examples.evaluate_referring")
    assert "in 90% of resampled sets" in output
    last = json.loads((trained / "run" / "metrics.jsonl").read_text().splitlines()[-1])["figures"]
    measured = json.loads(figures.read_text())
    intervals = measured.pop("intervals")
    assert {name: measured[name] for name in last} == last
    assert measured.keys() - last.keys() == {"by_length", "by_size", "listening"}
    assert all(low <= last["all"][name] <= high for name, (low, high) in intervals.items())


def test_evaluation_encodes_each_image_once_and_splits_many_expressions(trained, monkeypatch):
    folder, passes = trained / "run" / "last", []
    model, processor = M3DecForImageSegmentation.from_pretrained(folder), M3DecProcessor.from_pretrained(folder)
    model.model.vision_encoder.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    splits = load_referring_dataset("refer", root=trained / "data", dataset="scenes", split_by="scenes")
    whole = evaluate(model, processor, splits["val"], Accelerator(cpu=True), images_at_once=3)
    assert passes == [3, 1]
    monkeypatch.setattr(segmenter, "EXPRESSIONS_AT_ONCE", 5)
    parts = evaluate(model, processor, splits["val"], Accelerator(cpu=True), images_at_once=3)
    for one, other in zip(parts, whole, strict=True):
        assert (one.ref_id, one.sent_id, one.target) == (other.ref_id, other.sent_id, other.target)
        # Sums of floats in another order: a pixel at the very threshold may change sides.
        assert abs(one.predicted - other.predicted) <= 3
        assert abs(one.union - other.union) <= 3


def test_a_sentence_without_a_word_counts_as_answered_with_nothing_and_no_target_has_its_scores(trained):
    folder = trained / "run" / "last"
    model, processor = M3DecForImageSegmentation.from_pretrained(folder), M3DecProcessor.from_pretrained(folder)
    val = load_referring_dataset("refer", root=trained / "data", dataset="scenes", split_by="scenes")["val"]
    rows = val.to_list()
    rows[0]["sentences"][0]["sent"] = "..."
    rows[1]["mask"] = encode_mask(np.zeros((160, 160), bool))
    changed = datasets.Dataset.from_list(rows, features=val.features)
    results = evaluate(model, processor, changed, Accelerator(cpu=True))
    assert len(results) == sum(len(row["sentences"]) for row in rows)
    silent = [result for result in results if result.sent_id == rows[0]["sentences"][0]["sent_id"]]
    area = int(decode_mask(rows[0]["mask"]).sum())
    assert [(r.intersection, r.union, r.predicted, r.target) for r in silent] == [(0, area, 0, area)]
    figures = by_kind(results)
    assert figures["all"].keys() >= {"giou", "ciou", "n_acc", "t_acc"}
    assert "n_acc" in text_table(figures)


@pytest.mark.parametrize("letterbox", [False, True])
def test_what_a_worker_sends_becomes_what_the_processor_makes(letterbox):
    processor = M3DecProcessor.from_pretrained(SCENES_CHECKPOINT)
    processor.image_processor.do_letterbox = letterbox
    scenes = [draw_scene(seed=seed) for seed in range(3)]
    masks = [[scene.shapes[expression.target].mask for expression in scene.expressions[:2]] for scene in scenes]
    texts = [[expression.raw for expression in scene.expressions[:2]] for scene in scenes]
    examples = [
        {"image": scene.image, "text": text, "masks": mask, "sent_ids": [1, 2]}
        for scene, text, mask in zip(scenes, texts, masks, strict=True)
    ]
    expected = processor(images=[scene.image for scene in scenes], text=texts, segmentation_maps=masks)
    sent = collate(examples, processor)
    assert sent["pixel_values"].dtype == torch.uint8
    arrived = normalized(sent, processor.image_processor)
    assert arrived.pop("sent_ids").tolist() == [1, 2] * 3
    assert arrived.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(arrived[name].to(tensor.dtype), tensor), name
    assert arrived["pixel_values"].is_contiguous()


@pytest.mark.parametrize("path", ALL_RECIPES, ids=lambda path: path.stem)
def test_every_recipe_describes_a_model(path):
    settings = parse_recipe([str(path)]).model
    config = M3DecConfig(**settings)
    plain = settings.keys() - {"backbone_config"}
    assert {name: getattr(config, name) for name in plain} == {name: settings[name] for name in plain}


def test_there_is_a_recipe_for_every_row_of_tables_1_to_3():
    # Table I: three columns of four layers and VAL only; Table II: five rows; Table III: three. One is in all of them.
    assert len([path for path in ALL_RECIPES if path.parent.name == "tables"]) == (3 * 4 + 1 - 1) + (5 - 1) + (3 - 1)


def test_a_recipe_with_an_unknown_key_is_refused_by_name(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 0.1")
    with pytest.raises(ValueError, match="learning_rat"):
        read_recipe(tmp_path / "recipe.yaml")


def test_flags_win_over_the_recipe_and_the_recipe_over_its_base():
    recipe = parse_recipe(
        [str(RECIPES / "tables" / "table1_shared_2.yaml"), "--seed", "7", "--model.hidden_size", "64"]
    )
    assert (recipe.seed, recipe.learning_rate, recipe.output_dir) == (7, 5e-3, "outputs/table1_shared_2")
    assert recipe.model == {"mutual_attention": "shared", "num_decoder_layers": 2, "hidden_size": 64}


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(SystemExit):
        parse_recipe(["--lr_scheduler_type", "linear"])


def test_a_run_does_not_overwrite_another(trained):
    with pytest.raises(AssertionError, match="holds a run already"):
        run(trained / "recipe.yaml")


def test_an_unknown_flag_is_refused():
    with pytest.raises(SystemExit):
        parse_recipe(["--learning_rat", "0.1"])


@pytest.mark.slow
def test_the_shipped_recipe_needs_the_language(tmp_path):
    """Trained with an image's expressions dealt out to its masks at random, it stays under 0.30 mIoU."""
    recipe = {"base": str(RECIPES / "scenes.yaml"), "scenes": {"train": 2000, "val": 60}, "data_root": str(tmp_path)}
    recipe |= {"output_dir": str(tmp_path), "max_train_steps": 400, "eval_steps": 400, "shuffle_expressions": True}
    recipe["per_device_train_batch_size"] = 7  # on each of two processes: the recipe's 14 a step
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(tmp_path / "recipe.yaml", launcher=TWO_PROCESSES, timeout=3600)
    figures = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["figures"]
    assert figures["all"]["miou"] < 0.30


def test_the_quickstart_prints_and_draws_its_twenty_answers_offline(tmp_path):
    output = run(tmp_path, module="m3dec.examples.quickstart", cwd=tmp_path)
    asked = [(name, expression) for name, expressions in quickstart.EXPRESSIONS.items() for expression in expressions]
    lines = [re.split(r"\s{2,}", line) for line in output.splitlines()[1:-1]]
    assert [(image, expression) for image, expression, _, _ in lines] == asked and len(asked) == 20
    for _, _, share, score in lines:
        assert re.fullmatch(r"\d+\.\d%", share) and re.fullmatch(r"[01]\.\d\d|nothing found", score)
    with Image.open(tmp_path / "quickstart.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 800


def test_the_quickstart_asks_about_every_photograph():
    assert sorted(quickstart.EXPRESSIONS) == sorted(path.name for path in PHOTOGRAPHS.glob("*.jpg"))


def test_the_checkpoint_for_scenes_saved_and_loaded_again_finds_what_is_meant_in_new_scenes(tmp_path):
    """Drawn with a seed it was not trained on, in the layout of RefCOCO, and read as RefCOCO is read."""
    write_scenes(tmp_path / "data", split_sizes={"test": 20}, seed=1)
    scenes = load_referring_dataset("refer", root=tmp_path / "data", dataset="scenes", split_by="scenes")["test"]
    M3DecForImageSegmentation.from_pretrained(SCENES_CHECKPOINT).save_pretrained(tmp_path / "model")
    M3DecProcessor.from_pretrained(SCENES_CHECKPOINT).save_pretrained(tmp_path / "model")
    pipe = pipeline("referring-image-segmentation", model=tmp_path / "model", device="cpu")
    figures = by_kind(evaluate(pipe.model, pipe.processor, scenes, Accelerator(cpu=True)))
    assert figures["all"]["count"] == 20 * 6
    assert figures["all"]["miou"] > 0.7  # its card: 0.82 on 400 scenes
    assert "ordinal" in text_table(figures)
