"""Every recipe takes a step at a small size, and every launch file is one that accelerate knows."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from test_examples import TINY, run
from test_modeling_m3dec import TINY_BERT, TINY_SWIN
from transformers import BertConfig, BertModel, BertTokenizer

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples import train
from m3dec.examples.training.recipe import RECIPES, read_recipe
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.scenes import write_scenes

LAUNCH = RECIPES.parent / "launch"
ALL_RECIPES = sorted(RECIPES.glob("**/*.yaml"))
ALL_LAUNCH_FILES = sorted(LAUNCH.glob("*.yaml"))
# One of each kind: CNN, BERT, mixed, drawn scenes, on from a trained model, prepared data, a row of the tables
IN_SHORT = {
    "refcoco_darknet53_gru",
    "refcocog_umd_swin_bert",
    "mixed_darknet53",
    "scenes",
    "scenes_gpu",
    "your_data",
    "table3_vlt",
}
NEVER_RUN_ON = re.compile(r"never (run )?on ", re.IGNORECASE)
SMALL = {
    "source": "refer",
    "dataset": "scenes",
    "split_by": "scenes",
    "image_root": None,
    "backbone_weights": None,
    "word_vectors": None,
    "frequent_words": 0,
    "mixed_precision": None,  # one for all trainings of a process
    "max_train_steps": 1,
    "logging_steps": 1,
    "eval_images": 1,
    "per_device_train_batch_size": 2,
    "global_batch_size": 2,
    "expressions_per_image": 2,
    "dataloader_num_workers": 0,
    "cpu": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three sets of scenes about the same images, one of them prepared; a tiny BERT."""
    folder = tmp_path_factory.mktemp("recipes")
    for dataset in ("scenes", "refcoco+", "refcocog"):
        write_scenes(folder / "data", {"train": 4, "val": 2}, dataset=dataset)
    tables = load_referring_dataset("refer", root=folder / "data", dataset="scenes", split_by="scenes")
    write_prepared(tables, folder / "prepared", num_shards=1)
    words = sorted({word for row in tables["train"]["sentences"] for one in row for word in one["raw"].lower().split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizer({word: number for number, word in enumerate(vocabulary)}).save_pretrained(folder / "bert")
    BertModel(BertConfig(**{**TINY_BERT, "vocab_size": len(vocabulary)})).save_pretrained(folder / "bert")
    return folder


def made_small(path: Path, folder: Path, output: Path) -> dict:
    """The changes to a recipe after which it runs on what `folder` holds, and in seconds."""
    recipe = read_recipe(path)
    changes = {**SMALL, "base": str(path), "data_root": str(folder / "data"), "output_dir": str(output), "model": TINY}
    if recipe.get("model_name_or_path"):
        first = RECIPES / ("photographs.yaml" if recipe.get("text_encoder") else "scenes.yaml")
        changes["model_name_or_path"] = str(trained(first, folder))
    if recipe.get("text_encoder"):
        changes |= {"text_encoder": str(folder / "bert"), "model": {**TINY, "backbone_config": TINY_SWIN}}
    if recipe.get("mix"):
        changes["mix"] = [{**other, "split_by": "scenes"} for other in recipe["mix"]]
    if recipe.get("scenes"):
        changes["scenes"] = {"train": 4, "val": 2}
    if recipe.get("source") == "prepared":
        changes |= {"source": "prepared", "data_root": str(folder / "prepared"), "dataset": None, "split_by": None}
        changes["mix"] = [{"data_root": str(folder / "prepared")} for _ in changes.get("mix", [])]
    return changes


def trained(path: Path, folder: Path) -> Path:
    """What a recipe made, for those that go on from it; it takes its step once."""
    output = folder / path.stem
    if not output.exists():
        take_a_step(path, folder, output)
    return output / "last"


def take_a_step(path: Path, folder: Path, output: Path) -> None:
    output.mkdir()
    small = output / "small.yaml"
    small.write_text(yaml.safe_dump(made_small(path, folder, output)))
    train.main([str(small)])


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem in IN_SHORT else pytest.mark.slow) for path in ALL_RECIPES],
    ids=lambda path: path.stem,
)
def test_a_recipe_takes_a_step_with_the_architecture_that_it_names(path, folder, tmp_path):
    take_a_step(path, folder, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1] and math.isfinite(lines[0]["loss"])
    model = M3DecForImageSegmentation.from_pretrained(tmp_path / "run" / "last")
    M3DecProcessor.from_pretrained(tmp_path / "run" / "last")
    changed = made_small(path, folder, tmp_path)["model"]
    named = {name: value for name, value in read_recipe(path)["model"].items() if name not in changed}
    assert {name: getattr(model.config, name) for name in named} == named
    assert (model.config.text_config is None) == (not read_recipe(path).get("text_encoder"))
    card = (tmp_path / "run" / "last" / "README.md").read_text()
    references = int(re.search(r"\| train \| \d+ \| (\d+) \|", card)[1])  # a set of 4 images has 12 to 24
    assert (references > 24) == bool(read_recipe(path).get("mix"))


def test_the_sample_of_recipes_exists():
    assert {path.stem for path in ALL_RECIPES} >= IN_SHORT


def head(path: Path) -> str:
    """The comment at the top of a file, as one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


@pytest.mark.parametrize("path", ALL_RECIPES, ids=lambda path: path.stem)
def test_a_recipe_for_data_that_were_not_there_says_so_at_its_top(path):
    recipe = read_recipe(path)
    ours = recipe.get("dataset", "scenes") == "scenes"  # drawn or the reader's own
    assert head(path)
    assert ours or NEVER_RUN_ON.search(head(path))


@pytest.mark.parametrize("path", ALL_LAUNCH_FILES, ids=lambda path: path.stem)
def test_accelerate_reads_a_launch_file_and_knows_all_its_keys(path):
    config = load_config_from_file(str(path))
    keys = yaml.safe_load(path.read_text())
    assert keys.keys() <= {entry.name for entry in dataclasses.fields(config)}
    assert {name: getattr(config, name) for name in keys} == keys


@pytest.mark.parametrize("path", ALL_LAUNCH_FILES, ids=lambda path: path.stem)
def test_a_launch_file_for_hardware_that_was_not_there_says_so_in_its_first_line(path):
    first = path.read_text().splitlines()[0]
    assert yaml.safe_load(path.read_text())["use_cpu"] or NEVER_RUN_ON.search(first)


def test_the_launch_file_for_the_cpu_takes_a_step(folder, tmp_path):
    path = RECIPES / "scenes.yaml"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(made_small(path, folder, tmp_path / "run")))
    flags = ("--config_file", LAUNCH / "cpu.yaml", "-m", "m3dec.examples.train", tmp_path / "small.yaml")
    assert "1 processes" in run(*flags, module="accelerate.commands.launch")
    M3DecForImageSegmentation.from_pretrained(tmp_path / "run" / "last")


@pytest.mark.slow
def test_the_benchmark_of_training_tells_rates_and_parts(folder, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(made_small(RECIPES / "scenes.yaml", folder, tmp_path / "run")))
    flags = ("--recipe", path, "--batch_size", "2", "--steps", "1", "--rounds", "1", "--logging_steps", "5")
    said = run(*flags, module="m3dec.examples.benchmarks.benchmark_training")
    for name in ("bare", "train.py, 0 workers", "train.py, 2 workers"):
        assert re.search(rf"^{name} +\d+\.\d expressions/s, \d+\.\d% of bare", said, re.MULTILINE)
    for part in ("loader", "normalising", "forward", "backward", "optimizer", "moving average", "a line of the log"):
        assert re.search(rf"^{part}.* \d+\.\d$", said, re.MULTILINE)
