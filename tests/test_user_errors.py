"""An error for the user ends a program with its message; a bug keeps its traceback. As a command and as a script."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from transformers import pipeline

from m3dec import M3DecConfig
from m3dec.examples.user_errors import exits_with_message, loading
from m3dec.hub import SCENES_CHECKPOINT
from m3dec.hub.outward.export import read_json
from m3dec.hub.outward.push import PushError
from m3dec.hub.runtimes.export_onnx import agreement
from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.word_vectors import build_vocabulary, read_glove_text

EXAMPLES = Path(__file__).parents[1] / "examples"


def failing(error: Exception):
    raise error


FOR_THE_USER = {
    "a ValueError that m3dec raises": (lambda path: build_vocabulary({}, {}), "A vocabulary needs word counts"),
    "a bad value in a config": (lambda path: M3DecConfig(image_size=417), "The nearest sizes that fit are"),
    "a file that is missing": (lambda path: read_glove_text(path / "glove.txt"), "No such file .*glove.txt"),
    "a file that is no JSON": (lambda path: read_json(EXAMPLES / "train.py"), "train.py is no JSON"),
    "a class of m3dec": (lambda path: failing(ReferringDataError("line 3 is torn")), "line 3 is torn"),
    "a refused push": (lambda path: failing(PushError("log in")), "log in"),
    "a library's sentence about a file": (lambda path: failing(OSError("x is no model")), "x is no model"),
}
BUGS = {
    "numpy, called by m3dec": lambda: agreement(np.zeros(3), np.zeros(4)),
    "Python, called by m3dec": lambda: agreement(None, np.zeros(4)),
    "a ValueError of another library": lambda: failing(ValueError("too many values to unpack")),
    "a number of the system": lambda: failing(OSError(12, "Cannot allocate memory")),
    "a KeyError": lambda: failing(KeyError("mask")),
}


@pytest.mark.parametrize("name", FOR_THE_USER)
def test_an_error_for_the_user_ends_the_program_with_its_message(name, tmp_path):
    function, message = FOR_THE_USER[name]
    with pytest.raises(SystemExit, match=message):
        exits_with_message(function)(tmp_path)


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_raised_as_it_is(name):
    with pytest.raises(Exception):  # noqa: B017 - SystemExit is none
        exits_with_message(BUGS[name])()


def test_damaged_weights_are_told_and_a_model_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((SCENES_CHECKPOINT / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(SystemExit, match=r"A file of weights is damaged or not whole .* git-lfs"):
        exits_with_message(safe_open)(tmp_path / "model.safetensors", "pt")
    with pytest.raises(SystemExit, match="a/b/c cannot be loaded: Repo id"), loading("a/b/c"):
        raise HFValidationError("Repo id must be owner/name")


def test_a_folder_without_weights_is_told_in_one_line(tmp_path):
    """The library's pipeline() writes a traceback for every class it tried into its own message."""
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SCENES_CHECKPOINT / name, tmp_path)
    with pytest.raises(SystemExit) as stop, loading("mine"):
        pipeline("referring-image-segmentation", model=str(tmp_path))
    assert re.fullmatch(r"mine cannot be loaded: .*no file named model.safetensors.*", str(stop.value))


@pytest.mark.slow
@pytest.mark.parametrize("program", [("train.py",), ("-m", "m3dec_command_line", "train")])
def test_a_training_that_cannot_start_says_why_as_a_script_and_as_a_command(program, tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 2, "val": 1})
    torn = shutil.copytree(SCENES_CHECKPOINT, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((SCENES_CHECKPOINT / "model.safetensors").read_bytes()[:1000])
    (tmp_path / "glove.txt").write_text("Zzyzx 1 2 3\n")
    program = [EXAMPLES / program[0]] if program[0].endswith(".py") else program
    recipe = {"data_root": str(tmp_path), "output_dir": str(tmp_path / "run"), "cpu": True, "max_train_steps": 1}
    for fields, message in (
        ({"word_vectors": str(tmp_path / "glove.txt")}, "would get a row"),
        ({"model_name_or_path": str(torn)}, "A file of weights is damaged or not whole"),
    ):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | fields))
        command = [sys.executable, *map(str, program), str(tmp_path / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 1 and message in done.stderr, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
