"""What the steps of a training need besides the model: data, batches, an optimizer and a learning rate."""

import functools
import json
import logging
import math
import random
import signal
from collections import defaultdict
from pathlib import Path

import datasets
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import get_scheduler

from m3dec import M3DecForImageSegmentation, M3DecImageProcessor, M3DecProcessor
from m3dec.examples.evaluation.loop import text_field
from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.mixture import numbered_apart, without_held_out
from m3dec.processing.referring_data.readers.tables import image_ids
from m3dec.processing.referring_data.sampling import ReferringExamples, ShuffledByEpoch, references_by_image
from m3dec.processing.referring_data.scenes import write_scenes

from .recipe import TrainingRecipe

logger = logging.getLogger(__name__)


def read_data(recipe: TrainingRecipe) -> tuple[list[datasets.Dataset], dict[str, datasets.Dataset]]:
    """The tables to train on, one for each set, and the tables to evaluate on, each by a name.

    Where the recipe names scenes, they are drawn first if they are not there yet.
    """
    root = Path(recipe.data_root)
    if recipe.scenes and not (root / recipe.dataset).exists():
        write_scenes(root, split_sizes=recipe.scenes, seed=recipe.scenes_seed, dataset=recipe.dataset)
    splits = recipe.load()
    for split in (recipe.train_split, recipe.eval_split):
        if split not in splits:
            raise SystemExit(f"There is no split {split!r}. The splits of {recipe.describe()} are {', '.join(splits)}.")
    if recipe.scenes:
        check_scenes(recipe, splits, root / recipe.dataset)
    names = [f"{number} {data.describe()}" for number, data in enumerate(recipe.sets, start=1)]
    if not recipe.mix:
        return [splits[recipe.train_split]], {names[0]: splits[recipe.eval_split]}
    sets = numbered_apart([splits, *(data.load() for data in recipe.sets[1:])])
    try:
        training = without_held_out(sets)
    except ReferringDataError as error:
        raise SystemExit(str(error)) from error
    wanted = zip(names, sets, strict=True) if recipe.eval_mix else [(names[0], splits)]
    held_out = {name: tables[recipe.eval_split] for name, tables in wanted if recipe.eval_split in tables}
    without = [name for name in names if name not in held_out]
    if recipe.eval_mix and without:
        logger.warning("Not evaluated on, for want of a split %r: %s.", recipe.eval_split, ", ".join(without))
    return training, held_out


def check_scenes(recipe: TrainingRecipe, splits: datasets.DatasetDict, folder: Path) -> None:
    """End the program where the scenes in `folder` were drawn for another recipe."""
    found = {split: len(image_ids(table)) for split, table in splits.items()}
    seed = json.loads((folder / "instances.json").read_text(encoding="utf-8")).get("info", {}).get("seed")
    if found != recipe.scenes or seed not in (None, recipe.scenes_seed):  # None: the file does not say its seed
        raise SystemExit(
            f"The recipe asks for {recipe.scenes} scenes of seed {recipe.scenes_seed}, but {folder} holds {found} of "
            f"seed {seed}. Delete it, or give another --data_root."
        )


def counts_of(dataset: datasets.Dataset) -> dict[str, int]:
    """How many images, references and sentences."""
    sentences = sum(len(row) for row in dataset.select_columns("sentences")["sentences"])
    return {"images": len(references_by_image(dataset)), "references": len(dataset), "sentences": sentences}


def evaluation_images(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """All references of the first `count` images of `dataset`; None takes all."""
    return dataset.select([row for rows in list(references_by_image(dataset).values())[:count] for row in rows])


def batch_sizes(recipe: TrainingRecipe, num_processes: int) -> tuple[int, int]:
    """The images of a batch on each process, and the number of batches in a step.

    On any number of processes that divides `global_batch_size` a step takes that many images. A batch has at most
    `per_device_train_batch_size` of them.
    """
    most, wanted = recipe.per_device_train_batch_size, recipe.global_batch_size
    if wanted is None:
        return most, recipe.gradient_accumulation_steps
    share, rest = divmod(wanted, num_processes)
    if rest or share == 0:
        raise SystemExit(
            f"A step takes global_batch_size = {wanted} images, which {num_processes} processes cannot share evenly. "
            f"Start a number of processes that divides it, or choose another --global_batch_size."
        )
    at_once = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    if at_once < min(most, share) / 2:
        raise SystemExit(
            f"Of a step's {wanted} images each of {num_processes} processes takes {share}, which no batch from "
            f"{math.ceil(min(most, share) / 2)} to {min(most, share)} divides. Choose another --global_batch_size or "
            "--per_device_train_batch_size."
        )
    return at_once, share // at_once


def build_loader(
    recipe: TrainingRecipe, training: list[datasets.Dataset], processor, config, batch_size: int, step_size: int
) -> tuple[DataLoader, ShuffledByEpoch]:
    """Batches of the training sets, each by its weight, and their order, which can start in the middle of an epoch."""
    references = ReferringExamples(
        datasets.concatenate_datasets(training),
        text_field(config),
        seed=recipe.seed,
        sentences=recipe.sentences,
        expressions_per_image=recipe.expressions_per_image,
        holds_word=processor.holds_word,
        sets=[(len(table), weight) for table, weight in zip(training, recipe.weights, strict=True)],
    )
    if len(references) < step_size:
        raise SystemExit(
            f"A step takes {step_size} examples, but there are {len(references)}. Lower --global_batch_size or "
            "--per_device_train_batch_size, or start fewer processes."
        )
    order = ShuffledByEpoch(references)
    batches = DataLoader(
        references,
        batch_size=batch_size,
        sampler=order,
        drop_last=True,
        num_workers=recipe.dataloader_num_workers,
        persistent_workers=recipe.dataloader_num_workers > 0,
        collate_fn=functools.partial(collate, processor=processor, shuffle_expressions=recipe.shuffle_expressions),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # its own, so that a new iterator draws nothing from dropout's
    )
    return batches, order


def ignore_signals(worker: int) -> None:
    """Let a loader's worker live on. A launcher sends SIGTERM to all processes, but the last step needs its batches."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate(examples: list[dict], processor: M3DecProcessor, shuffle_expressions: bool = False) -> dict:
    """Images, with their expressions and masks, as the model's inputs and labels.

    Pixels and labels stay bytes, which are quick to send from a worker and to the device; `normalized` does the rest.
    """
    texts = [example["text"] for example in examples]
    if shuffle_expressions:
        for example, text in zip(examples, texts, strict=True):
            random.Random(f"{example['sent_ids']}").shuffle(text)
    inputs = processor(
        images=[example["image"] for example in examples],
        text=texts,
        segmentation_maps=[example["masks"] for example in examples],
        do_rescale=False,
        do_normalize=False,
    )
    sent_ids = torch.tensor([sent_id for example in examples for sent_id in example["sent_ids"]])
    return {**inputs, "labels": inputs["labels"].bool(), "sent_ids": sent_ids}


def normalized(batch: dict, image_processor: M3DecImageProcessor) -> dict:
    """A batch of `collate` with its images rescaled and normalized, as the image processor does by itself."""
    settings = (image_processor.do_rescale, image_processor.rescale_factor, image_processor.do_normalize)
    statistics = (image_processor.image_mean, image_processor.image_std)
    pixel_values = image_processor.rescale_and_normalize(batch["pixel_values"], *settings, *statistics)
    return {**batch, "pixel_values": pixel_values}


def build_optimizer(model: M3DecForImageSegmentation, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Adam or AdamW over what is trainable: backbone and BERT at their own rates, norms and biases without decay.

    A BERT at the rate 0 is frozen here: its parameters get no gradient, and its forward pass keeps nothing for one."""
    language = model.model.language_encoder
    parts = {"backbone": set(model.model.vision_encoder.backbone.parameters())}
    if model.config.text_config is not None:
        parts["text_encoder"] = set(language.text_encoder.parameters())
    if freezes_text_encoder(recipe, model):
        language.text_encoder.requires_grad_(False)
    groups = defaultdict(list)  # also at the rate 0, unless frozen: a resumed training may change a rate
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for part, own in parts.items() if parameter in own), "rest")
            groups[part, parameter.ndim <= 1 or name.endswith("bias")].append(parameter)
    rates = {"backbone": recipe.backbone_learning_rate, "text_encoder": recipe.text_encoder_learning_rate}
    groups = [
        {
            "params": parameters,
            "lr": recipe.learning_rate if rates.get(part) is None else rates[part],
            "weight_decay": 0.0 if is_norm_or_bias else recipe.weight_decay,
        }
        for (part, is_norm_or_bias), parameters in groups.items()
    ]
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](groups, fused=True)


def freezes_text_encoder(recipe: TrainingRecipe, model: M3DecForImageSegmentation) -> bool:
    """Whether the model has a BERT, and the recipe a learning rate of 0 for it."""
    return model.config.text_config is not None and recipe.text_encoder_learning_rate == 0


def build_schedule(
    recipe: TrainingRecipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int
) -> LambdaLR:
    """The learning rate of each step: a linear warm-up, then "cosine" or "poly" (power 0.9) to 0, "step" by 10 after
    each milestone, or "constant"."""
    kind, warmup = recipe.lr_scheduler_type, recipe.num_warmup_steps
    name = {"cosine": "cosine", "poly": "polynomial"}.get(kind, "constant_with_warmup")
    settings = {"lr_end": 0.0, "power": 0.9} if kind == "poly" else None
    unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # the rates of this optimizer are the factors for any other
    (curve,) = get_scheduler(name, unit, warmup, max(total_steps, warmup + 1), settings).lr_lambdas
    milestones = [epoch * steps_per_epoch for epoch in recipe.lr_milestones] if kind == "step" else []

    def factor(step: int) -> float:
        if step < warmup:
            return curve(step + 1)  # the curve starts with a step at the rate 0, which is left out
        return curve(step) * 0.1 ** sum(step >= milestone for milestone in milestones)

    return LambdaLR(optimizer, factor)
