"""What a training reads and changes from step to step, and how that is made of a recipe."""

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock, Timeout
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3

from m3dec import M3DecForImageSegmentation
from m3dec.processing.referring_data.readers.tables import image_ids

from .models import build_model, check_packages
from .parts import batch_sizes, build_loader, build_optimizer, build_schedule, counts_of, evaluation_images, read_data
from .recipe import TrainingRecipe


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0  # optimization steps done
    best: float = -1.0  # mIoU of output_dir/best
    minutes: float = 0.0  # spent, over all runs


class Training:
    """What the steps of a training read and change. A new one stands at the first step of its recipe."""

    def __init__(self, recipe: TrainingRecipe, accelerator: Accelerator):
        check_packages(recipe)  # before data are drawn, which takes minutes
        with accelerator.main_process_first():
            training, held_out = read_data(recipe)
        train, measured = (datasets.concatenate_datasets(sets) for sets in (training, list(held_out.values())))
        self.counts = {recipe.train_split: counts_of(train), recipe.eval_split: counts_of(measured)}
        held_out = {name: evaluation_images(table, recipe.eval_images) for name, table in held_out.items()}
        self.held_out = datasets.concatenate_datasets(list(held_out.values()))
        self.held_out_sets = {name: image_ids(table) for name, table in held_out.items()}
        self.recipe, self.accelerator, self.progress = recipe, accelerator, Progress()

        self.model, self.processor = build_model(recipe, train, accelerator)
        if recipe.sync_batch_norm and accelerator.num_processes > 1:
            self.model = convert_sync_batchnorm(self.model)  # timm's: torch's own would drop the norms' activations
        batch_size, self.accumulation = batch_sizes(recipe, accelerator.num_processes)  # batches of a step
        self.step_size = batch_size * self.accumulation * accelerator.num_processes  # images of a step
        batches, self.order = build_loader(
            recipe, training, self.processor, self.model.config, batch_size, self.step_size
        )
        optimizer = build_optimizer(self.model, recipe)
        self.wrapped, self.optimizer, self.batches = accelerator.prepare(self.model, optimizer, batches)
        self.average = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
        set_seed(recipe.seed, device_specific=True)  # the weights are the same everywhere, dropout is not
        self.steps_per_epoch = len(self.batches) // self.accumulation  # the images that make no whole step are left out
        self.total_steps = recipe.max_train_steps or recipe.num_train_epochs * self.steps_per_epoch
        self.schedule = build_schedule(recipe, self.optimizer, self.steps_per_epoch, self.total_steps)

    @property
    def evaluated(self) -> M3DecForImageSegmentation:
        """The model that is measured and saved."""
        return self.model if self.average is None else self.average.module


@contextlib.contextmanager
def locked(folder: Path):
    """Make `folder`, and end the program where another training writes there: it would delete this one's files."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):  # given back even by a process that is killed
            yield
    except Timeout as error:
        raise SystemExit(
            f"Another training is running in {folder}. Wait for it, or choose another --output_dir."
        ) from error


def build_accelerator(recipe: TrainingRecipe) -> Accelerator:
    """Set up processes, devices, trackers and random numbers as the recipe says."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":  # on CPUs, Accelerate would leave it out
            raise SystemExit(
                f"This configuration asks for {name}, which gives each process a part of the model, but train.py "
                "measures, averages and saves the whole model on each. Use MULTI_GPU: the largest recipe has only "
                "211 M parameters. docs/training.md says how a loop of your own uses FSDP2."
            )
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        cpu=recipe.cpu or not torch.accelerator.is_available(),  # unasked, a CPU would make each process the only one
        log_with=recipe.report_to if recipe.with_tracking else None,
        project_dir=Path(recipe.output_dir) / "tracking",
    )
    if recipe.with_tracking and not accelerator.log_with:
        raise SystemExit(
            f"--with_tracking logs to {recipe.report_to}, which is not installed: pip install {recipe.report_to}, or "
            "leave the flag out; metrics.jsonl and curves.png are always written."
        )
    if recipe.sync_batch_norm and accelerator.device.type != "cuda":
        raise SystemExit("--sync_batch_norm is for GPUs, but this training is on the CPU. Leave it out.")
    set_seed(recipe.seed)
    accelerator.init_trackers("m3dec", {name: str(value) for name, value in dataclasses.asdict(recipe).items()})
    return accelerator
