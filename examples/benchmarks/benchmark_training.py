"""How fast train.py goes beside bare forward, backward and step, and where the rest of its time goes.

    python examples/benchmarks/benchmark_training.py [--batch_size 6] [--steps 16] [--rounds 5] [...]

Trains the model of recipes/scenes.yaml, with random weights where its packages are not installed, on scenes drawn into
a temporary folder. The bare steps and those of train.py, without workers and with two, take the same batches, by turns
in one run, and the medians over the rounds are printed; where other programs run too, the CPU time says more. Any flag
of train.py goes.
"""

import copy
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec.examples import train
from m3dec.examples.training.models import PACKAGES
from m3dec.examples.training.parts import batch_sizes, build_loader, normalized, read_data
from m3dec.examples.training.recipe import RECIPES, TrainingRecipe, parse_recipe
from m3dec.examples.training.state import Progress, Training, build_accelerator

SETTLING = 4  # untimed steps before each timed block: they use up the batches that workers had ready


@dataclass
class BenchmarkArguments:
    recipe: str = str(RECIPES / "scenes.yaml")
    batch_size: int = HfArg(default=6, help="Images a step.")
    steps: int = HfArg(default=16, help="Timed steps of each kind in a round.")
    rounds: int = 5


def main():
    parser = HfArgumentParser(BenchmarkArguments, allow_abbrev=False)
    arguments, flags = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    with tempfile.TemporaryDirectory() as folder:
        recipe = small_recipe(Path(folder), arguments, flags)
        training = Training(recipe, build_accelerator(recipe))
        train.training_mode(training)
        compare_rates(training, arguments.steps, arguments.rounds)
        print_parts(training, arguments.steps)


def small_recipe(folder: Path, arguments: BenchmarkArguments, flags: list[str]) -> TrainingRecipe:
    """The recipe, with as many scenes in `folder` as the steps of a block need."""
    size = str(arguments.batch_size)
    given = ["--data_root", str(folder / "data"), "--output_dir", str(folder / "run"), "--max_train_steps", "1000000"]
    given += ["--per_device_train_batch_size", size, "--global_batch_size", size, *flags]
    recipe = parse_recipe([arguments.recipe, *given])
    images = 3 * arguments.batch_size * (arguments.steps + SETTLING + 1)  # an example has six of some six expressions
    recipe.scenes = {"train": images, "val": 1}
    for name in ("backbone_weights", "word_vectors"):
        package = PACKAGES.get(getattr(recipe, name))
        if package and find_spec(package) is None:
            setattr(recipe, name, None)
    Path(recipe.output_dir).mkdir()
    return recipe


def compare_rates(training: Training, steps: int, rounds: int) -> None:
    """Print expressions a second of the bare steps and of train.py's, by turns."""
    windows = list(itertools.islice(train.rest_of_epoch(training), SETTLING + steps))
    expressions = sum(len(batch["input_ids"]) for window in windows[SETTLING:] for batch in window)
    kinds = {"bare": lambda: timed_steps(windows, partial(bare_step, training), steps)}
    for workers in (0, 2):
        kinds[f"train.py, {workers} workers"] = partial(epoch_steps, with_workers(training, workers), steps)
    turns = [
        {name: kind() for name, kind in kinds.items()} for _ in tqdm(range(rounds), desc="comparing", unit="round")
    ]
    print(
        f"{training.accelerator.device}, {torch.get_num_threads()} threads, {training.step_size} images and "
        f"{expressions / steps:.0f} expressions a step; medians of {rounds} rounds of {steps} steps"
    )
    for name in kinds:
        rate = statistics.median(expressions / turn[name][0] for turn in turns)
        wall, cpu = (statistics.median(turn["bare"][clock] / turn[name][clock] for turn in turns) for clock in (0, 1))
        print(f"{name:20} {rate:8.1f} expressions/s, {wall:.1%} of bare; by this process's CPU time {cpu:.1%}")


def with_workers(training: Training, workers: int) -> Training:
    """The same training with a loader of that many workers."""
    other, recipe = copy.copy(training), copy.copy(training.recipe)
    recipe.dataloader_num_workers = workers
    (sets, _), size = read_data(recipe), batch_sizes(recipe, 1)[0]
    batches, other.order = build_loader(recipe, sets, other.processor, other.model.config, size, other.step_size)
    other.batches, other.progress = other.accelerator.prepare(batches), Progress()
    return other


def timed_steps(windows: Iterable[list[dict]], step: Callable, steps: int) -> tuple[float, float]:
    """Seconds, and of the CPU, of so many steps, after SETTLING steps that are not timed."""
    for number, window in enumerate(windows, start=1):
        step(window)
        if number == SETTLING:
            start = now()
        if number == SETTLING + steps:
            return since(start)
    raise ValueError(f"An epoch must have {SETTLING + steps} steps, but it has {number}. Lower --steps.")


def bare_step(training: Training, window: list[dict]) -> None:
    """Forward, backward and step."""
    for batch in window:
        training.wrapped(**{name: tensor for name, tensor in batch.items() if name != "sent_ids"}).loss.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()


def epoch_steps(training: Training, steps: int) -> tuple[float, float]:
    """`timed_steps` of what train.py does, from the beginning of the first epoch."""

    def step(window: list[dict]):
        losses = train.train_step(training, window)
        training.progress.step += 1
        losses["loss"].item()  # for the bar
        if training.progress.step % training.recipe.logging_steps == 0:
            train.log(training, losses, None)

    training.progress.step = 0
    return timed_steps(train.rest_of_epoch(training), step, steps)


def print_parts(training: Training, steps: int) -> None:
    """Print the milliseconds of each part of a step, one after the other, without workers."""
    average = ModelEmaV3(training.model, decay=0.999)
    spent = defaultdict(list)

    def timed(name: str, part: Callable, *arguments, **keywords):
        start = now()
        result = part(*arguments, **keywords)
        spent[name].append(since(start)[0])
        return result

    def step():
        training.optimizer.step()
        training.optimizer.zero_grad()

    training.batches.set_epoch(0)
    training.order.start = 0
    batches = iter(training.batches)
    for _ in range(steps):
        batch = timed("loader", next, batches)
        batch = timed("normalising", normalized, batch, training.processor.image_processor)
        del batch["sent_ids"]
        loss = timed("forward", training.wrapped, **batch).loss
        timed("is it finite", lambda loss=loss: bool(torch.isfinite(loss)))
        timed("backward", loss.backward)
        timed("clipping", training.accelerator.clip_grad_norm_, training.model.parameters(), 1.0)
        timed("optimizer", step)
        timed("moving average *", average.update, training.model)
        timed("a line of the log *", train.log, training, {"loss": loss.detach()}, None)
    print("Milliseconds a step, one part after the other, no workers (* where or when a recipe asks for it):")
    for name, seconds in spent.items():
        print(f"{name:20} {1000 * statistics.median(seconds):8.1f}")


def now() -> tuple[float, float]:
    """Seconds, and those that this process spent on the CPU, when the GPU has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


if __name__ == "__main__":
    main()
