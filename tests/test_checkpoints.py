"""A training that was interrupted goes on as if nothing had happened."""

import errno
import hashlib
import io
import itertools
import json
import os
import re
import resource
import shutil
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
from test_modeling_m3dec import TINY_SWIN

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples import train
from m3dec.examples.training import resuming
from m3dec.examples.training.checkpoints import is_whole, newest_checkpoint, read_checkpoint, write_checkpoint
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
    times = ("minutes", "images_per_second")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def number_of_steps(recipe: Path) -> int:
    return figures(recipe.parent / "whole")[-1]["step"]


def interrupted_at(step: int, recipe: Path, output: Path, monkeypatch, *flags) -> None:
    """Train, end after the checkpoint of `step` was written, and go on to the end."""
    write, flags = resuming.write_checkpoint, (*flags, "--checkpointing_steps", str(step))

    def write_and_end(folder, now, *arguments):
        write(folder, now, *arguments)
        if now == step:
            raise Interrupted

    monkeypatch.setattr(resuming, "write_checkpoint", write_and_end)
    with pytest.raises(Interrupted):
        train.main([str(recipe), "--output_dir", str(output), *flags])
    monkeypatch.setattr(resuming, "write_checkpoint", write)
    torch.manual_seed(999)  # a new process would not know where dropout was
    train.main([str(recipe), "--output_dir", str(output), "--resume_from_checkpoint", "newest", *flags])


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (16, 2)])
def test_interrupted_anywhere_the_weights_are_those_of_the_whole_run(step, workers, recipe, tmp_path, monkeypatch):
    interrupted_at(step, recipe, tmp_path / "run", monkeypatch, "--dataloader_num_workers", str(workers))
    assert digest(tmp_path / "run") == digest(recipe.parent / "whole")
    assert figures(tmp_path / "run") == figures(recipe.parent / "whole")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 2


def test_a_mixture_by_weights_goes_on_in_mid_epoch_with_the_very_examples_that_were_left(recipe, tmp_path, monkeypatch):
    write_scenes(tmp_path, split_sizes={"train": 5, "val": 1}, seed=1, dataset="others")
    fields = yaml.safe_load(recipe.read_text()) | {"weight": 0.5, "eval_steps": 100, "max_train_steps": 14}
    fields["mix"] = [{"source": "refer", "data_root": str(tmp_path), "dataset": "others", "split_by": "scenes"}]
    fields["mix"][0]["weight"] = 1.5
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    seen, step = [], train.train_step

    def write_down(training, window):
        seen.append([batch["sent_ids"].tolist() for batch in window])
        return step(training, window)

    monkeypatch.setattr(train, "train_step", write_down)
    train.main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "whole")])
    whole = seen.copy()
    seen.clear()
    interrupted_at(11, tmp_path / "recipe.yaml", tmp_path / "run", monkeypatch, "--dataloader_num_workers", "1")
    assert seen == whole and len(seen) == 14
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    flags = ["--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "newest", "--weight", "0.51"]
    with pytest.raises(SystemExit, match=r"'weights': \[0.5, 1.5\].*and this recipe .*'weights': \[0.51, 1.5\]"):
        train.main([str(tmp_path / "recipe.yaml"), *flags])


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


@pytest.mark.slow
def test_two_processes_go_on_from_any_of_five_steps(recipe, tmp_path):
    flags = ("--max_train_steps", "6", "--eval_steps", "6", "--per_device_train_batch_size", "1")
    more = ("--checkpointing_steps", "1", "--checkpoints_total_limit", "6", "--dataloader_num_workers", "1")
    run(recipe, *flags, *more, "--output_dir", tmp_path / "whole", launcher=TWO_PROCESSES)
    for step in range(1, 6):
        checkpoint = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
        where = ("--output_dir", tmp_path / f"from{step}", "--resume_from_checkpoint", checkpoint)
        output = run(recipe, *flags, *where, launcher=TWO_PROCESSES)
        assert f"step {step}" in output and "2 processes" in output
        assert digest(tmp_path / f"from{step}") == digest(tmp_path / "whole"), step
        assert (tmp_path / f"from{step}" / "best" / "model.safetensors").exists()  # though the best was seen elsewhere


def test_sigterm_saves_and_stops_and_sigusr1_saves_and_goes_on(recipe, tmp_path):
    flags = ["--output_dir", str(tmp_path), "--num_train_epochs", "500", "--eval_steps", "100000"]
    flags += ["--checkpointing_steps", "100000", "--dataloader_num_workers", "1"]
    command = [sys.executable, "-m", "m3dec.examples.train", str(recipe), *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, start_new_session=True) as child:
        while "loss=" not in child.stderr.read(64):
            assert child.poll() is None
        child.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 120
        while newest_checkpoint(tmp_path / "checkpoints") is None:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        first = newest_checkpoint(tmp_path / "checkpoints")
        os.killpg(child.pid, signal.SIGTERM)  # as launchers and clusters do: the loader's worker gets it too
        said = child.stderr.read()
    assert child.returncode == 1
    assert "--resume_from_checkpoint newest goes on" in said
    assert newest_checkpoint(tmp_path / "checkpoints").name > first.name


@pytest.fixture(scope="module")
def small(recipe) -> Path:
    """A recipe of 8 steps with a model of 0.1 M parameters, and its whole run in `small` beside it."""
    fields = yaml.safe_load(recipe.read_text())
    del fields["num_train_epochs"]
    fields |= {
        "max_train_steps": 8,
        "eval_steps": 3,
        "lr_scheduler_type": "constant",
        "output_dir": str(recipe.parent / "small"),
    }
    fields["model"]["backbone_config"] = TINY_SWIN
    path = recipe.with_name("small.yaml")
    path.write_text(yaml.safe_dump(fields))
    train.main([str(path)])
    return path


@pytest.fixture
def halfway(small, tmp_path) -> Path:
    """The folder of a training of `small` that has done 4 of its steps, with checkpoints of 2 and 4."""
    flags = ["--max_train_steps", "4", "--checkpointing_steps", "2"]
    train.main([str(small), "--output_dir", str(tmp_path / "run"), *flags])
    return tmp_path / "run"


def go_on(small: Path, output: Path, *flags, prepare=None) -> subprocess.CompletedProcess:
    """Go on to the 8th step in a process of its own, with a checkpoint every 2 steps."""
    command = [sys.executable, "-m", "m3dec.examples.train", str(small), "--output_dir", str(output), *flags]
    command += ["--resume_from_checkpoint", "newest", "--checkpointing_steps", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=prepare, timeout=600)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_the_process_names_step_and_sentences_and_leaves_the_checkpoint(small, halfway):
    before = contents(halfway / "checkpoints")
    stopped = go_on(small, halfway, "--model.mask_loss_weight", "1.0e+39")  # inf in float32
    assert stopped.returncode == 1
    assert re.search(r"FloatingPointError: The loss is inf for the sentences \[\d+.*of step 5", stopped.stderr)
    assert contents(halfway / "checkpoints") == before
    assert go_on(small, halfway).returncode == 0
    assert digest(halfway) == digest(small.parent / "small")


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights_of_a_checkpoint(small, halfway, monkeypatch):
    before, backward = contents(halfway / "checkpoints"), Accelerator.backward

    def overflowing(accelerator, loss):
        backward(accelerator, loss)
        accelerator._models[0].mask_decoder.last_convolution.weight.grad[:] = torch.inf

    monkeypatch.setattr(Accelerator, "backward", overflowing)
    flags = ["--resume_from_checkpoint", "newest", "--checkpointing_steps", "1", "--max_grad_norm", "0"]
    with pytest.raises(
        FloatingPointError, match=r"gradient's norm is inf for the sentences \[\d+.*of step 5\. The last"
    ):
        train.main([str(small), "--output_dir", str(halfway), *flags])
    assert contents(halfway / "checkpoints") == before


@pytest.mark.parametrize("later", [0.6, pytest.param(0.8, marks=pytest.mark.slow)])
def test_the_best_model_stays_until_one_is_better_though_the_training_goes_on_from_before_it(
    later, small, tmp_path, monkeypatch
):
    scores, by_kind = iter([0.1, 0.7, later, later]), train.by_kind

    def scored(results):
        figures = by_kind(results)
        return {**figures, "all": {**figures["all"], "miou": next(scores)}}

    monkeypatch.setattr(train, "by_kind", scored)
    flags = ["--output_dir", str(tmp_path), "--eval_steps", "2", "--checkpointing_steps", "3"]
    train.main([str(small), *flags, "--max_train_steps", "4"])  # a checkpoint of step 3, the best of step 4
    best = contents(tmp_path / "best")
    train.main([str(small), *flags, "--max_train_steps", "6", "--resume_from_checkpoint", "newest"])
    assert (contents(tmp_path / "best") == best) == (later == 0.6)


def test_a_training_does_not_go_on_with_what_would_make_its_state_mean_something_else(small, halfway):
    before = contents(halfway)
    others = {"seed": "4", "optimizer": "adam", "ema_decay": "0.9", "per_device_train_batch_size": "1"}
    for name, other in others.items():
        flags = ["--output_dir", str(halfway), "--resume_from_checkpoint", "newest", f"--{name}", other]
        with pytest.raises(SystemExit, match=r"(?s)goes on with the recipe it was started by, but .*Learning rates"):
            train.main([str(small), *flags])
    assert contents(halfway) == before


def test_two_trainings_do_not_write_into_one_folder(small, halfway):
    before = contents(halfway)
    flags = ["--output_dir", str(halfway), "--resume_from_checkpoint", "newest"]
    with train.locked(halfway), pytest.raises(SystemExit, match=r"Another training is running in .*run\. Wait"):
        train.main([str(small), *flags])
    assert contents(halfway) == before


def test_a_file_that_cannot_grow_stops_the_process_with_a_named_error_and_the_checkpoint_before_is_whole(
    small, halfway
):
    size = (halfway / "checkpoints" / "step-00000004" / "training.pt").stat().st_size // 2
    stopped = go_on(small, halfway, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert stopped.returncode == 1
    assert re.search(r"File too large: .*training\.pt", stopped.stderr)
    assert newest_checkpoint(halfway / "checkpoints").name == "step-00000004"
    assert go_on(small, halfway).returncode == 0
    assert digest(halfway) == digest(small.parent / "small")


# In a mount namespace of its own: a file system with room for two thirds of a checkpoint more than it holds, a training
# that fills it, what is left on it, and the same with room.
FULL_DISK = """
set -e
mount -t tmpfs -o size=$3k tmpfs "$1"
cp -r "$2/." "$1"
set +e
shift 3
"$@"
echo "exit code $?; left: $(ls -d "$MOUNTED"/checkpoints/step-* | xargs -n 1 basename | xargs)"
mount -o remount,size=1g "$MOUNTED"
"$@" && sha256sum "$MOUNTED"/last/model.safetensors
"""


def may_mount() -> bool:
    tried = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="a small file system cannot be mounted here: unshare is not allowed")
def test_a_full_disk_stops_the_process_with_a_named_error_and_with_room_it_goes_on(small, halfway, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    held, one = (
        sum(len(content) for content in contents(folder).values())
        for folder in (halfway, halfway / "checkpoints" / "step-00000004")
    )
    room = (held + 2 * one // 3) // 1024 + 64  # of each file the last page too
    command = [sys.executable, "-m", "m3dec.examples.train", str(small), "--output_dir", str(disk)]
    command += ["--resume_from_checkpoint", "newest", "--checkpointing_steps", "2"]
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL_DISK, "sh"]
    done = subprocess.run(
        [*namespace, str(disk), str(halfway), str(room), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "MOUNTED": str(disk)},
        timeout=600,
    )
    assert "exit code 1; left: step-00000002 step-00000004 step-00000006.tmp" in done.stdout, done.stderr
    assert re.search(r"No space left on device: .*step-00000006\.tmp/training\.pt", done.stderr)
    assert "step-00000004, step 4" in done.stdout.split("exit code")[1]
    assert digest(small.parent / "small") in done.stdout


@pytest.mark.parametrize(
    ("what", "number", "least"),
    [
        ("moments", 3, 3),
        pytest.param("moments", 60, 60, marks=pytest.mark.slow),
        pytest.param("operations", 1, 60, marks=pytest.mark.slow),
    ],
)
def test_a_training_that_is_killed_goes_on_and_ends_as_if_nothing_had_happened(what, number, least, small, tmp_path):
    command = [sys.executable, Path(__file__).with_name("killed_training.py"), small, tmp_path, what, str(number)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=7200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["kills"] >= least
    for name in ("best", "last"):
        M3DecForImageSegmentation.from_pretrained(tmp_path / "whole" / name)
        M3DecProcessor.from_pretrained(tmp_path / "whole" / name)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def states(step: int) -> tuple[dict, dict]:
    return {"step": step, "weights": torch.arange(50_000.0) + step}, {"rng": torch.get_rng_state()}


class FailingFile(io.FileIO):
    """A file whose write fails in its middle, when it is the write of that number of all such files."""

    written, failing, error = 0, 0, 0

    def write(self, data) -> int:
        FailingFile.written += 1
        if FailingFile.written == FailingFile.failing:
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(FailingFile.error, os.strerror(FailingFile.error))
        return super().write(data)


def fail_a_write(patch, occurrence: int, error: int):
    """Have that write of all files fail; returns what tells whether it came to it."""
    FailingFile.written, FailingFile.failing, FailingFile.error = 0, occurrence, error
    plain = Path.open

    def opened(self, mode="r", **keywords):
        if "w" not in mode:
            return plain(self, mode, **keywords)
        file = io.BufferedWriter(FailingFile(self, "w"))
        return file if "b" in mode else io.TextIOWrapper(file, **keywords)

    patch.setattr(Path, "open", opened)
    return lambda: FailingFile.written >= occurrence


def fail_a_call(patch, owner, name: str, occurrence: int, error: int):
    """Have that call of `owner.name` fail; returns what tells whether it came to it."""
    plain, calls = getattr(owner, name), []

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) == occurrence:
            raise OSError(error, os.strerror(error))
        return plain(*arguments, **keywords)

    patch.setattr(owner, name, failing)
    return lambda: len(calls) >= occurrence


# Of each place the times that a checkpoint comes there: two files of tensors and the manifest; these and two folders;
# the files are read once more for the manifest.
PLACES = {"write": 5, "fsync": 5, "rename": 1, "open": 5, "mkdir": 1, "rmdir": 1, "unlink": 3}
OWNERS = {"fsync": os, "rename": Path, "open": Path, "mkdir": Path, "rmdir": os, "unlink": os}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("place", "least"), PLACES.items(), ids=PLACES)
def test_a_disk_that_fails_anywhere_leaves_a_whole_checkpoint(error, place, least, accelerator, tmp_path, monkeypatch):
    for occurrence in itertools.count(1):
        folder = tmp_path / str(occurrence)
        write_checkpoint(folder, 1, *states(1), accelerator, limit=1)
        with monkeypatch.context() as patch:
            if place == "write":
                came_to_it = fail_a_write(patch, occurrence, error)
            else:
                came_to_it = fail_a_call(patch, OWNERS[place], place, occurrence, error)
            try:
                write_checkpoint(folder, 2, *states(2), accelerator, limit=1)
                said = None
            except OSError as raised:
                said = raised.errno
            failed = came_to_it()
        assert said == (error if failed else None)
        training, _ = read_checkpoint(newest_checkpoint(folder), accelerator)
        assert training["step"] in (1, 2)
        assert torch.equal(training["weights"], torch.arange(50_000.0) + training["step"])
        write_checkpoint(folder, 3, *states(3), accelerator, limit=1)
        assert [path.name for path in folder.iterdir()] == ["step-00000003"]  # no remains that fill the disk
        if not failed:
            break
    assert occurrence > least


def test_a_full_disk_is_told_as_one_with_the_files_name(accelerator, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # torch.save says "unexpected pos 832 vs 726"
        fail_a_write(patch, 2, errno.ENOSPC)
        with pytest.raises(OSError, match=r"No space left on device.*training\.pt"):
            write_checkpoint(tmp_path, 1, *states(1), accelerator, limit=1)


def test_a_training_that_goes_on_from_an_earlier_checkpoint_takes_the_place_of_the_later_ones(accelerator, tmp_path):
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, step, *states(step), accelerator, limit=3)
    write_checkpoint(tmp_path, 3, *states(3), accelerator, limit=1)  # gone on from 2, given up 4 and 6
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


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


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again_and_forgets_its_figures(recipe, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n')
    flags = ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "newest"]
    train.main([str(recipe), *flags])
    assert digest(tmp_path) == digest(recipe.parent / "whole")
    assert figures(tmp_path) == figures(recipe.parent / "whole")


def test_a_training_goes_on_with_the_learning_rate_that_it_is_given_now(recipe, tmp_path):
    flags = ["--output_dir", str(tmp_path), "--checkpointing_steps", "4", "--logging_steps", "1"]
    train.main([str(recipe), *flags, "--max_train_steps", "4", "--lr_scheduler_type", "constant"])
    flags += ["--resume_from_checkpoint", "newest", "--max_train_steps", "6", "--lr_scheduler_type", "constant"]
    train.main([str(recipe), *flags, "--learning_rate", "1e-5", "--backbone_learning_rate", "1e-6"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert rates == {1: 0.01, 2: 0.01, 3: 0.01, 4: 0.01, 5: 1e-5, 6: 1e-5}
