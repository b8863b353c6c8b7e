"""A training that was interrupted goes on as if nothing had happened."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from test_examples import TINY, TWO_PROCESSES, run

from m3dec.examples import checkpoints, train
from m3dec.examples.checkpoints import is_whole, newest_checkpoint, read_checkpoint, write_checkpoint
from m3dec.processing.referring_data.scenes import write_scenes


class Interrupted(BaseException):
    """As a process that ends, at a place of the test's choice."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of 3 epochs with dropout, one sentence of each reference drawn an epoch, and its whole run."""
    folder = tmp_path_factory.mktemp("resume")
    write_scenes(folder, split_sizes={"train": 8, "val": 2})
    fields = {"data_root": str(folder), "num_train_epochs": 3, "per_device_train_batch_size": 2, "cpu": True}
    fields |= {"expressions_per_image": 2, "eval_steps": 15, "seed": 3}
    fields |= {"model": {**TINY, "dropout": 0.1}, "learning_rate": 0.01, "output_dir": str(folder / "whole")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields))
    train.main([str(folder / "recipe.yaml")])
    return folder / "recipe.yaml"


def digest(output: Path) -> str:
    return hashlib.sha256((output / "last" / "model.safetensors").read_bytes()).hexdigest()


def figures(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "minutes"} for line in lines]


def number_of_steps(recipe: Path) -> int:
    return figures(recipe.parent / "whole")[-1]["step"]


def interrupted_at(step: int, recipe: Path, output: Path, monkeypatch, *flags) -> None:
    """Train, end after the checkpoint of `step` was written, and go on to the end."""
    write, flags = train.write_checkpoint, (*flags, "--checkpointing_steps", str(step))

    def write_and_end(folder, now, *arguments):
        write(folder, now, *arguments)
        if now == step:
            raise Interrupted

    monkeypatch.setattr(train, "write_checkpoint", write_and_end)
    with pytest.raises(Interrupted):
        train.main([str(recipe), "--output_dir", str(output), *flags])
    monkeypatch.setattr(train, "write_checkpoint", write)
    torch.manual_seed(999)  # a new process would not know where dropout was
    train.main([str(recipe), "--output_dir", str(output), "--resume_from_checkpoint", "newest", *flags])


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (16, 2)])
def test_interrupted_anywhere_the_weights_are_those_of_the_whole_run(step, workers, recipe, tmp_path, monkeypatch):
    interrupted_at(step, recipe, tmp_path / "run", monkeypatch, "--dataloader_num_workers", str(workers))
    assert digest(tmp_path / "run") == digest(recipe.parent / "whole")
    assert figures(tmp_path / "run") == figures(recipe.parent / "whole")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_at_every_step_the_weights_are_those_of_the_whole_run(workers, recipe, tmp_path, monkeypatch):
    steps = number_of_steps(recipe)
    assert steps >= 30
    for step in range(1, steps):
        output = tmp_path / f"run{step}"
        interrupted_at(step, recipe, output, monkeypatch, "--dataloader_num_workers", str(workers))
        assert digest(output) == digest(recipe.parent / "whole"), step


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(recipe, tmp_path):
    for name, seed in (("first", "3"), ("second", "3"), ("other", "4")):
        flags = ["--seed", seed, "--max_train_steps", "5", "--output_dir", str(tmp_path / name)]
        train.main([str(recipe), *flags])
    assert digest(tmp_path / "first") == digest(tmp_path / "second") != digest(tmp_path / "other")


def test_two_processes_go_on_too(recipe, tmp_path):
    flags = ("--max_train_steps", "6", "--eval_steps", "6", "--per_device_train_batch_size", "1")
    run(recipe, *flags, "--output_dir", tmp_path / "whole", launcher=TWO_PROCESSES)
    flags = (*flags, "--output_dir", tmp_path / "run", "--checkpointing_steps", "4")
    run(recipe, *flags, launcher=TWO_PROCESSES)
    (tmp_path / "run" / "last" / "model.safetensors").unlink()
    output = run(recipe, *flags, "--resume_from_checkpoint", "newest", launcher=TWO_PROCESSES)
    assert "step-00000004, step 4" in output
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")


def test_sigterm_saves_and_stops_and_sigusr1_saves_and_goes_on(recipe, tmp_path):
    flags = ["--output_dir", str(tmp_path), "--num_train_epochs", "500", "--eval_steps", "100000"]
    command = [sys.executable, "-m", "m3dec.examples.train", str(recipe), *flags, "--checkpointing_steps", "100000"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        while "loss=" not in child.stderr.read(64):
            assert child.poll() is None
        child.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 120
        while newest_checkpoint(tmp_path / "checkpoints") is None:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first = newest_checkpoint(tmp_path / "checkpoints")
        child.send_signal(signal.SIGTERM)
        said = child.stderr.read()
    assert child.returncode == 1
    assert "--resume_from_checkpoint newest goes on" in said
    assert newest_checkpoint(tmp_path / "checkpoints").name > first.name


def test_a_loss_that_is_not_finite_stops_at_once_names_the_sentences_and_leaves_the_checkpoint(
    recipe, tmp_path, monkeypatch
):
    forward = train.M3DecForImageSegmentation.forward

    def spoilt(self, *arguments, **inputs):
        outputs = forward(self, *arguments, **inputs)
        if self.training and (tmp_path / "checkpoints" / "step-00000004").is_dir():
            outputs.loss = outputs.loss * torch.nan
        return outputs

    monkeypatch.setattr(train.M3DecForImageSegmentation, "forward", spoilt)
    with pytest.raises(FloatingPointError, match=r"nan for the sentences \[\d+, \d+"):
        train.main([str(recipe), "--output_dir", str(tmp_path), "--checkpointing_steps", "4"])
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000004"


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def states(step: int) -> tuple[dict, dict]:
    return {"step": step, "weights": torch.arange(1000.0) + step}, {"rng": torch.get_rng_state()}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("place", ["open", "fsync", "rename", "save"])
@pytest.mark.parametrize("occurrence", [1, 2, 3, 4])
def test_a_disk_that_fails_anywhere_leaves_the_checkpoint_before(
    error, place, occurrence, accelerator, tmp_path, monkeypatch
):
    write_checkpoint(tmp_path, 1, *states(1), accelerator, limit=1)
    target, name = {
        "open": (Path, "open"),
        "fsync": (os, "fsync"),
        "rename": (Path, "rename"),
        "save": (checkpoints.torch, "save"),
    }[place]
    original, calls = getattr(target, name), []

    def failing(*arguments, **keywords):
        calls.append(1)
        if len(calls) == occurrence:
            raise OSError(error, os.strerror(error))
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, failing)
        try:
            write_checkpoint(tmp_path, 2, *states(2), accelerator, limit=1)
        except OSError as raised:
            assert raised.errno == error
    newest = newest_checkpoint(tmp_path)
    training, _ = read_checkpoint(newest, accelerator)
    assert training["step"] in (1, 2)
    assert torch.equal(training["weights"], torch.arange(1000.0) + training["step"])
    write_checkpoint(tmp_path, 3, *states(3), accelerator, limit=1)
    assert newest_checkpoint(tmp_path).name == "step-00000003"


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damage, accelerator, tmp_path):
    for step in (1, 2):
        write_checkpoint(tmp_path, step, *states(step), accelerator, limit=2)
    path = tmp_path / "step-00000002" / "training.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "changed":
        path.write_bytes(path.read_bytes()[:-7] + b"1234567")
    elif damage == "missing":
        path.unlink()
    else:
        path.with_name("manifest.json").write_text("" if damage == "empty manifest" else "{")
    assert not is_whole(path.parent)
    assert newest_checkpoint(tmp_path).name == "step-00000001"
    with pytest.raises(ValueError, match="not whole"):
        read_checkpoint(path.parent, accelerator)


def test_without_a_checkpoint_there_is_a_sentence(recipe, tmp_path):
    with pytest.raises(SystemExit, match="--checkpointing_steps"):
        train.main([str(recipe), "--output_dir", str(tmp_path), "--resume_from_checkpoint", "newest"])
