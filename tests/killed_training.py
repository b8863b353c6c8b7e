"""Trainings that are killed and go on: everything is imported once, and each training is a fork, a process of its own.

    python tests/killed_training.py RECIPE.yaml FOLDER moments 60
    python tests/killed_training.py RECIPE.yaml FOLDER operations 7

`moments 60` kills 60 times at random moments, a training that goes on each time. `operations 7` kills
at every 7th thing that a checkpoint or a model's folder does to the disk, each time in a new training. Whatever ends by
itself must have the weights of the training that was left alone. Prints a line of JSON; exits with 1 on a broken claim.
"""

import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from safetensors import safe_open

from m3dec.examples import train
from m3dec.examples.training.checkpoints import newest_checkpoint

INTERVAL = 2  # steps between checkpoints
PLACES = ("between", "checkpoint", "folder")
WRITING = os.O_WRONLY | os.O_RDWR
WHERE = mmap.mmap(-1, 1)  # shared with the forks: the number, in PLACES, of where a training is


def main():
    recipe, folder, what, number = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)  # no threads, which a fork would lose
    began = time.monotonic()
    run(recipe, folder / "whole")
    seconds = time.monotonic() - began
    kill = {"moments": kill_at_moments, "operations": kill_at_operations}[what]
    print(json.dumps({"seconds of the whole": round(seconds, 1), **kill(recipe, folder, number, seconds)}))


def kill_at_moments(recipe: Path, folder: Path, kills: int, seconds: float) -> dict:
    """Kill, go on, kill, ...; after five kills let it come to its end, and begin anew."""
    output, rng = folder / "killed", random.Random(0)
    places, lost, ends = Counter(), Counter(), 0
    in_a_row = 0
    while places.total() < kills:
        moment = rng.uniform(0, seconds / 3) if in_a_row < 5 else None
        if run(recipe, output, moment):
            assert_same_weights(output, folder / "whole")
            shutil.rmtree(output)
            ends, in_a_row = ends + 1, 0
            continue
        places[PLACES[WHERE[0]]] += 1
        lost[check(output, folder / "whole")] += 1
        in_a_row += 1
    run(recipe, output)
    assert_same_weights(output, folder / "whole")
    return {"kills": kills, "in": dict(places), "steps lost": dict(sorted(lost.items())), "ends compared": ends + 1}


def kill_at_operations(recipe: Path, folder: Path, every: int, seconds: float) -> dict:
    """Kill before the first, the `every` + first, ... file operation of checkpoints and folders, until none is left."""
    output, places, lost = folder / "killed", Counter(), Counter()
    operation = 1
    while not run(recipe, output, operation=operation):
        places[PLACES[WHERE[0]]] += 1
        lost[check(output, folder / "whole")] += 1
        run(recipe, output)
        assert_same_weights(output, folder / "whole")
        shutil.rmtree(output)
        operation += every
    return {"kills": places.total(), "in": dict(places), "steps lost": dict(sorted(lost.items()))}


def run(recipe: Path, output: Path, moment: float | None = None, operation: int | None = None) -> bool:
    """Train from the newest checkpoint in a fork, killed after `moment` seconds or before the file operation of that
    number; whether it came to its end."""
    flags = ["--output_dir", str(output), "--checkpointing_steps", str(INTERVAL), "--logging_steps", "1"]
    if newest_checkpoint(output / "checkpoints"):
        flags += ["--resume_from_checkpoint", "newest"]
    else:
        shutil.rmtree(output, ignore_errors=True)
    WHERE[0] = 0
    process = os.fork()
    if process == 0:
        train_and_exit([str(recipe), *flags], output.with_suffix(".log"), operation)
    if moment is not None:
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, output.with_suffix(".log").read_text()[-3000:]
    return True


def train_and_exit(arguments: list[str], log: Path, operation: int | None) -> None:
    """The fork's life."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        train.save_checkpoint = marked(train.save_checkpoint, PLACES.index("checkpoint"))
        train.save = marked(train.save, PLACES.index("folder"))
        if operation is not None:
            die_before(operation)
        train.main(arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def marked(function, place: int):
    """`function`, and while it runs, its place stands in WHERE."""

    def inside(*arguments):
        WHERE[0] = place
        function(*arguments)
        WHERE[0] = 0

    return inside


def die_before(operation: int) -> None:
    """Have this process killed before the file operation of that number, counted where WHERE is not 0."""
    changes, seen = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}, 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if WHERE[0] and (event in changes or (event == "open" and arguments[2] & WRITING)):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def check(output: Path, whole: Path) -> int:
    """What holds after a kill at any moment; returns how many logged steps are lost."""
    checkpoints = sorted((output / "checkpoints").glob("step-????????"))
    newest = newest_checkpoint(output / "checkpoints")
    assert newest == (checkpoints[-1] if checkpoints else None), f"{checkpoints[-1]} is not whole"
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    logged = max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)
    lost = logged - (int(newest.name.removeprefix("step-")) if newest else 0)
    assert lost <= INTERVAL, f"step {logged} was logged, but the newest checkpoint is {newest}"
    for name in ("best", "last"):
        if (output / name).exists():
            assert files(output / name) == files(whole / name), f"{name}/ is not complete"
            with safe_open(output / name / "model.safetensors", "pt") as weights:
                assert weights.keys()
    return max(lost, 0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(output: Path, whole: Path) -> None:
    """The training that was killed ended as the one that was left alone."""
    for name in ("best", "last"):
        ours, theirs = (
            hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest() for folder in (output, whole)
        )
        assert ours == theirs, f"{name}/ has other weights"
    steps = [[json.loads(line)["step"] for line in (f / "metrics.jsonl").open()] for f in (output, whole)]
    assert steps[0] == steps[1], f"metrics.jsonl has the steps {steps[0]}"


if __name__ == "__main__":
    main()
