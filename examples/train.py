"""Train M3Dec by a recipe, on one process or several.

    python examples/train.py examples/recipes/scenes.yaml
    python examples/train.py examples/recipes/refcoco_darknet53.yaml --data_root data --learning_rate 1e-3
    torchrun --nproc_per_node 4 examples/train.py examples/recipes/refcoco_darknet53.yaml
    accelerate launch --config_file examples/launch/one_gpu.yaml examples/train.py examples/recipes/your_data.yaml

Writes output_dir/best (by mIoU on the evaluation split) and output_dir/last, both complete `from_pretrained` folders
with a model card, and beside them recipe.yaml, metrics.jsonl, curves.png and samples.png; with --checkpointing_steps N,
and on SIGTERM and SIGUSR1, output_dir/checkpoints, from which --resume_from_checkpoint newest goes on as if nothing had
happened.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast, broadcast_object_list, gather, set_seed
from filelock import FileLock, Timeout
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import evaluate
from m3dec.examples.evaluation.tables import by_kind, by_set, listening, table
from m3dec.examples.training.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint
from m3dec.examples.training.parts import (
    batch_sizes,
    build_loader,
    build_model,
    build_optimizer,
    check_packages,
    counts_of,
    evaluation_images,
    freezes_text_encoder,
    normalized,
    rate_at,
    read_data,
)
from m3dec.examples.training.recipe import TrainingRecipe, parse_recipe, write_recipe
from m3dec.examples.training.report import draw_curves, draw_samples
from m3dec.examples.user_errors import exits_with_message
from m3dec.hub.outward.model_card import write_model_card
from m3dec.hub.outward.push import PushError, open_repository, push_model
from m3dec.processing.referring_data.readers.tables import image_ids
from m3dec.processing.referring_data.sampling import ShuffledByEpoch

LISTENS_BY = 200  # steps after the warm-up; a training that works follows the words by then


@dataclass
class Progress:
    """How far a training is."""

    step: int = 0  # optimisation steps done
    best: float = -1.0  # mIoU of output_dir/best
    minutes: float = 0.0  # spent, over all runs


@dataclass
class Training:
    """What the steps of a training read and change."""

    recipe: TrainingRecipe
    accelerator: Accelerator
    model: M3DecForImageSegmentation
    wrapped: nn.Module  # the model as accelerate runs it
    average: ModelEmaV3 | None  # of the weights
    processor: M3DecProcessor
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    batches: DataLoader
    order: ShuffledByEpoch
    accumulation: int  # batches of a step on each process
    step_size: int  # pictures of a step on all processes
    steps_per_epoch: int
    total_steps: int
    held_out: datasets.Dataset
    held_out_sets: dict[str, set[int]]  # of each set in it the image_ids
    counts: dict[str, dict[str, int]]  # of each split its pictures, references and sentences
    progress: Progress = dataclasses.field(default_factory=Progress)

    @property
    def evaluated(self) -> M3DecForImageSegmentation:
        """The model that is measured and saved."""
        return self.model if self.average is None else self.average.module


@exits_with_message
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
    accelerator = build_accelerator(recipe)
    with alone_in(output) if accelerator.is_main_process else contextlib.nullcontext():
        training = prepare(recipe, accelerator)
        if recipe.resume_from_checkpoint:
            resume(training)
        repository = open_own_repository(recipe, accelerator) if recipe.push_to_hub else None
        if accelerator.is_main_process:
            write_recipe(recipe, output / "recipe.yaml")
        train(training)
        if repository and accelerator.is_main_process:
            push_best(recipe, repository, training.progress.step)
        accelerator.end_training()


@contextlib.contextmanager
def alone_in(folder: Path):
    """Make `folder`, and end the program where another training writes there: it would delete this one's files."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):  # given back even by a process that is killed
            yield
    except Timeout as error:
        raise SystemExit(
            f"Another training is running in {folder}. Wait for it, or choose another --output_dir."
        ) from error


def open_own_repository(recipe: TrainingRecipe, accelerator: Accelerator) -> str:
    """The name of the repository to push to, made now: a refusal comes before the training, in all processes."""
    name, refusal = recipe.hub_model_id or Path(recipe.output_dir).resolve().name, None
    if accelerator.is_main_process:
        try:
            name = open_repository(name, private=recipe.hub_private_repo or None)
        except (PushError, ValueError) as error:
            refusal = str(error)
    name, refusal = broadcast_object_list([name, refusal])
    if refusal:
        raise SystemExit(refusal)
    return name


def push_best(recipe: TrainingRecipe, repository: str, steps: int) -> None:
    folder, private = Path(recipe.output_dir) / "best", recipe.hub_private_repo or None
    try:
        commit = push_model(folder, repository, private=private, message=f"Trained for {steps} steps")
        print(f"{repository} is at commit {commit}.")
    except (PushError, ValueError, OSError) as error:
        raise SystemExit(f"{error} The model is safe; later: m3dec push model {folder} {repository}") from error


def train(training: Training) -> None:
    """From the step where it is to the last."""
    recipe, accelerator, progress = training.recipe, training.accelerator, training.progress
    began = time.monotonic() - 60 * progress.minutes
    hidden = not accelerator.is_local_main_process
    bar = tqdm(total=training.total_steps, initial=progress.step, desc="training", disable=hidden)
    training_mode(training)
    with bar, caught_signals() as signals:
        while progress.step < training.total_steps:
            for window in rest_of_epoch(training):
                losses = train_step(training, window)
                progress.step += 1
                progress.minutes = (time.monotonic() - began) / 60
                last = progress.step == training.total_steps
                bar.update()
                bar.set_postfix(loss=f"{losses['loss'].item():.3f}")
                if progress.step % recipe.logging_steps == 0:
                    log(training, losses, bar.format_dict["rate"])
                if progress.step % (recipe.eval_steps or training.steps_per_epoch) == 0 or last:
                    evaluate_and_save(training, losses)
                elif progress.step == recipe.num_warmup_steps + LISTENS_BY:
                    warn_if_blind(training, evaluate_held_out(training))
                asked = latest_signal(signals, accelerator)
                if asked or (recipe.checkpointing_steps and progress.step % recipe.checkpointing_steps == 0):
                    save_checkpoint(training)
                if asked == signal.SIGTERM:
                    raise SystemExit(f"Stopped at step {progress.step}; --resume_from_checkpoint newest goes on.")
                if last:
                    break


def rest_of_epoch(training: Training) -> Iterator[list[dict]]:
    """The batches of each step of the epoch, from the step where the training is."""
    epoch, done = divmod(training.progress.step, training.steps_per_epoch)
    training.batches.set_epoch(epoch)  # and through it, the references
    training.order.start = done * training.step_size
    window = []
    for batch in training.batches:
        window.append(normalized(batch, training.processor.image_processor))
        if len(window) == training.accumulation:
            yield window
            window = []


def train_step(training: Training, window: list[dict]) -> dict[str, Tensor]:
    """One step of the optimizer, in which every expression of all processes and batches weighs the same.

    Returns:
        This process's part of the step's losses, scalars whose mean over the processes is the loss.
    """
    accelerator = training.accelerator
    expressions = torch.tensor(sum(len(batch["input_ids"]) for batch in window), device=accelerator.device)
    expressions = accelerator.reduce(expressions, "sum").item()
    losses, seen = {}, []
    for number, batch in enumerate(window, start=1):
        sent_ids = batch.pop("sent_ids").tolist()
        seen += sent_ids
        weight = len(batch["input_ids"]) * accelerator.num_processes / expressions  # gradients are averaged over them
        with contextlib.nullcontext() if number == len(window) else accelerator.no_sync(training.wrapped):
            outputs = training.wrapped(**batch)
            if not torch.isfinite(outputs.loss):
                raise FloatingPointError(not_finite(f"loss is {outputs.loss.item()}", sent_ids, training))
            accelerator.backward(weight * outputs.loss)  # Eq. 5
        for name in ("loss", "mask_loss", "reconstruction_loss"):
            if outputs.get(name) is not None:
                losses[name] = losses.get(name, 0.0) + weight * outputs[name].detach()
    logged = (training.progress.step + 1) % training.recipe.logging_steps == 0
    if logged and training.model.language_reconstruction is not None:
        losses["reconstruction_spread"] = reconstruction_spread(training.model, outputs, batch["attention_mask"])
    norm = accelerator.clip_grad_norm_(training.model.parameters(), training.recipe.max_grad_norm or math.inf)
    if accelerator.scaler is None and not torch.isfinite(norm):  # fp16's scaler leaves such a step out by itself
        raise FloatingPointError(not_finite(f"gradient's norm is {norm.item()}", seen, training))
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.schedule.step()
    if training.average is not None:
        training.average.update(training.model, step=training.progress.step + 1)
    return losses


def not_finite(what: str, sent_ids: list[int], training: Training) -> str:
    return (
        f"The {what} for the sentences {sent_ids} (sent_id) of step {training.progress.step + 1}. The last checkpoint "
        "is untouched: look at these, or go on from it, or from the one before, with a lower --learning_rate."
    )


@torch.no_grad()
def reconstruction_spread(model: M3DecForImageSegmentation, outputs, attention_mask: Tensor) -> Tensor:
    """How far LFR's targets differ within a batch: a scalar near 0 says that they collapsed to a constant (Eq. 4)."""
    words, sentences = outputs.word_features, outputs.sentence_features
    return (
        model.language_reconstruction.project(words, sentences, attention_mask.bool()).std(dim=0, correction=0).mean()
    )


def training_mode(training: Training) -> None:
    """As `model.train()`, but the batch norms that the recipe freezes keep their statistics, and a BERT that it
    freezes drops nothing out."""
    training.wrapped.train()
    backbone = training.model.model.vision_encoder.backbone
    parts = {"none": (), "backbone": backbone.modules(), "all": training.model.modules()}
    for module in parts[training.recipe.frozen_batch_norms]:
        if isinstance(module, _BatchNorm):
            module.eval()
    if freezes_text_encoder(training.recipe, training.model):
        training.model.model.language_encoder.text_encoder.eval()


def build_accelerator(recipe: TrainingRecipe) -> Accelerator:
    """What spreads the training over processes and devices, tells a tracker, and draws the recipe's random numbers."""
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
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise SystemExit(
            f"This launch configuration asks for {accelerator.distributed_type.value}, which spreads one model over "
            "GPUs. The largest recipe has 211 M parameters: use MULTI_GPU, which keeps all of it on each."
        )
    if recipe.sync_batch_norm and accelerator.device.type != "cuda":
        raise SystemExit("--sync_batch_norm is for GPUs, but this training is on the CPU. Leave it out.")
    set_seed(recipe.seed)
    settings = {name: str(value) for name, value in dataclasses.asdict(recipe).items()}
    accelerator.init_trackers("m3dec", settings)
    return accelerator


def prepare(recipe: TrainingRecipe, accelerator: Accelerator) -> Training:
    """All that the recipe describes, at the first step."""
    check_packages(recipe)  # before data are drawn, which takes minutes
    with accelerator.main_process_first():
        training, held_out = read_data(recipe)
    all_training, all_held_out = (datasets.concatenate_datasets(sets) for sets in (training, list(held_out.values())))
    counts = {recipe.train_split: counts_of(all_training), recipe.eval_split: counts_of(all_held_out)}
    held_out = {name: evaluation_images(table, recipe.eval_images) for name, table in held_out.items()}
    model, processor = build_model(recipe, all_training, accelerator)
    if recipe.sync_batch_norm and accelerator.num_processes > 1:
        model = convert_sync_batchnorm(model)  # timm's: torch's own would drop the activations in its norms
    batch_size, accumulation = batch_sizes(recipe, accelerator.num_processes)
    step_size = batch_size * accumulation * accelerator.num_processes
    batches, order = build_loader(recipe, training, processor, model.config, batch_size, step_size)
    optimizer = build_optimizer(model, recipe)
    wrapped, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    set_seed(recipe.seed, device_specific=True)  # the weights are the same everywhere, dropout is not
    steps_per_epoch = len(batches) // accumulation  # all of one size: what is left over is left out
    total_steps = recipe.max_train_steps or recipe.num_train_epochs * steps_per_epoch
    return Training(
        recipe=recipe,
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        average=ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None,
        processor=processor,
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, rate_at(recipe, steps_per_epoch, total_steps)),
        batches=batches,
        order=order,
        accumulation=accumulation,
        step_size=step_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        held_out=datasets.concatenate_datasets(list(held_out.values())),
        held_out_sets={name: image_ids(table) for name, table in held_out.items()},
        counts=counts,
    )


def log(training: Training, losses: dict[str, Tensor], steps_per_second: float | None) -> None:
    """Write a line of losses, the learning rate and the speed."""
    losses = {name: loss.item() for name, loss in training.accelerator.reduce(losses, "mean").items()}
    rate = max(training.schedule.get_last_lr())
    speed = (steps_per_second or 0.0) * training.step_size
    record(training, **losses, learning_rate=rate, images_per_second=speed)


def evaluate_and_save(training: Training, losses: dict[str, Tensor]) -> None:
    """Measure, write the figures, the pictures, and the folders last/ and, where it is, best/."""
    progress, output = training.progress, Path(training.recipe.output_dir)
    results = evaluate_held_out(training)
    figures, sets = by_kind(results), by_set(results, training.held_out_sets)
    loss = training.accelerator.reduce(losses["loss"], "mean").item()
    improved = figures["all"]["miou"] > progress.best or not (output / "best").exists()
    progress.best = max(progress.best, figures["all"]["miou"])
    peaks, chance = warn_if_blind(training, results)
    measured = {"figures": figures} | ({"sets": sets} if sets else {})
    heard = {} if math.isnan(peaks) else {"peak_in_target": peaks, "blind_chance": chance}
    if training.accelerator.is_main_process:
        tqdm.write(f"step {progress.step}, {progress.minutes:.1f} min, loss {loss:.4f}\n{table(figures)}")
        if sets:
            tqdm.write(table(sets, "set"))
        save(training, figures, output / "last")
        if improved:
            save(training, figures, output / "best")
        record(training, loss=loss, **measured, **heard)  # when it is saved: `resume` believes it
        draw_curves(output / "metrics.jsonl", output / "curves.png")
        draw_samples(training.evaluated, training.processor, training.held_out, output / "samples.png")
    training.accelerator.wait_for_everyone()


def evaluate_held_out(training: Training) -> list:
    """The results of all sentences held out, of the model as it would be saved now."""
    model, accelerator = training.evaluated, training.accelerator
    broadcast(list(model.buffers()))  # each process has batch norms of its own; the first one's are saved
    at_once = training.recipe.per_device_eval_batch_size
    results = evaluate(model, training.processor, training.held_out, accelerator, at_once)
    training_mode(training)
    return results


def warn_if_blind(training: Training, results: list) -> tuple[float, float]:
    """Say so where the answers do not depend on the words; return what `listening` measured."""
    peaks, chance = listening(results)
    step, main = training.progress.step, training.accelerator.is_main_process
    if main and step >= training.recipe.num_warmup_steps + LISTENS_BY and peaks <= 1.25 * chance:
        tqdm.write(
            f"STUCK BLIND at step {step}? The answers peak in their target for {peaks:.0%} of the expressions; a model "
            f"that never reads them reaches {chance:.0%}. A lower --learning_rate, more --num_warmup_steps, "
            "--max_grad_norm 1 or --model.dice_loss_weight 0.3 have helped."
        )
    return peaks, chance


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
    new = received[:]
    del received[: len(new)]  # not one that comes right now
    asked = signal.SIGTERM if signal.SIGTERM in new else int(bool(new)) * signal.SIGUSR1
    if accelerator.num_processes > 1:
        everywhere = gather(torch.tensor([int(asked)], device=accelerator.device)).tolist()
        asked = signal.SIGTERM if signal.SIGTERM in everywhere else max(everywhere)
    return int(asked)


def save(training: Training, figures: dict, folder: Path) -> None:
    """A complete `from_pretrained` folder with its card, written beside its place and moved there when it is whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    training.evaluated.save_pretrained(temporary)
    training.processor.save_pretrained(temporary)
    kind = training.accelerator.device.type
    device = torch.cuda.get_device_name() if kind == "cuda" else kind.upper()
    sets = training.recipe.sets if training.recipe.eval_mix else [training.recipe]
    write_model_card(
        temporary,
        {**dataclasses.asdict(training.recipe), "resume_from_checkpoint": None},
        figures,
        " and ".join(data.describe() for data in sets),
        training.progress.step,
        counts=training.counts,
        device=device,
        mixed_precision=training.accelerator.mixed_precision,
        num_processes=training.accelerator.num_processes,
        minutes=training.progress.minutes,
        license=training.recipe.license,
    )
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)  # a folder that is being deleted is not seen under its own name
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(training: Training) -> None:
    """Everything that `resume` needs to go on as if nothing had happened."""
    state = {name: part.state_dict() for name, part in stateful(training).items()}
    state["progress"], state["settings"] = dataclasses.asdict(training.progress), lasting_settings(training)
    # Dropout's random numbers, and each process's own batch norms.
    process = {"rng": torch.get_rng_state(), "buffers": dict(training.model.named_buffers())}
    if torch.cuda.is_available():
        process["cuda_rng"] = torch.cuda.get_rng_state()
    folder, limit = Path(training.recipe.output_dir) / "checkpoints", training.recipe.checkpoints_total_limit
    write_checkpoint(folder, training.progress.step, state, process, training.accelerator, limit)


def resume(training: Training) -> None:
    """Go on from a checkpoint, and forget figures of later steps, which will be measured again; but best/, which may be
    of a later step, stays until one is better."""
    output, wanted = Path(training.recipe.output_dir), training.recipe.resume_from_checkpoint
    path = newest_checkpoint(output / "checkpoints") if wanted == "newest" else Path(wanted)
    if path is None:
        training.accelerator.print(f"no whole checkpoint in {output / 'checkpoints'} yet: starting at step 0")
    else:
        load_checkpoint(training, path)
        training.accelerator.print(f"going on from {path}, step {training.progress.step}")
    metrics = output / "metrics.jsonl"
    if training.accelerator.is_main_process and metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        lines = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        best = max((fields["figures"]["all"]["miou"] for _, fields in lines if "figures" in fields), default=-1.0)
        if best > training.progress.best:
            print(f"best/ stays the model of a later step, of mIoU {best:.4f}, until one is better")
            training.progress.best = best
        kept = [line for line, fields in lines if fields["step"] <= training.progress.step]
        metrics.with_suffix(".tmp").write_text("".join(kept), encoding="utf-8")
        metrics.with_suffix(".tmp").rename(metrics)


def load_checkpoint(training: Training, path: Path) -> None:
    """Put everything back to where `save_checkpoint` was, but learning rates and decay to what the recipe says now."""
    try:
        state, process = read_checkpoint(path, training.accelerator)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    parts, schedule, groups = stateful(training), training.schedule, training.optimizer.param_groups
    found, expected = state.get("settings"), lasting_settings(training)
    if found != expected or parts.keys() | {"progress", "settings"} != state.keys():
        raise SystemExit(
            f"A training goes on with the recipe it was started by, but {path} has {', '.join(sorted(state))} of "
            f"{found}, and this recipe {', '.join(sorted(parts))} of {expected}. Learning rates, decay, lengths and "
            "intervals may change."
        )
    settings = [{name: group[name] for name in ("initial_lr", "weight_decay")} for group in groups]
    for name, part in parts.items():
        part.load_state_dict(state[name])
    for group, setting in zip(training.optimizer.param_groups, settings, strict=True):
        rate = setting["initial_lr"] * schedule.lr_lambdas[0](schedule.last_epoch)
        group.update(setting, lr=rate)
    schedule.base_lrs = [setting["initial_lr"] for setting in settings]
    for name, buffer in training.model.named_buffers():
        buffer.copy_(process["buffers"][name])
    torch.set_rng_state(process["rng"])
    if "cuda_rng" in process and torch.cuda.is_available():
        torch.cuda.set_rng_state(process["cuda_rng"])
    training.progress = Progress(**state["progress"])


def lasting_settings(training: Training) -> dict:
    """What must be the same when a training goes on: with another, the state would fit and mean something else."""
    names = ("seed", "optimizer", "sentences", "expressions_per_image")
    settings = {name: getattr(training.recipe, name) for name in names}
    if set(training.recipe.weights) != {1.0}:
        settings["weights"] = training.recipe.weights
    if freezes_text_encoder(training.recipe, training.model):
        settings["text_encoder"] = "frozen"  # the optimizer has no state of it
    return settings | {"images_per_step": training.step_size, "steps_per_epoch": training.steps_per_epoch}


def stateful(training: Training) -> dict:
    """What a checkpoint holds the state of."""
    parts = {"model": training.model, "optimizer": training.optimizer, "schedule": training.schedule}
    parts |= {"average": training.average, "scaler": training.accelerator.scaler}
    return {name: part for name, part in parts.items() if part is not None}


def record(training: Training, **values) -> None:
    """Append a line to metrics.jsonl, and tell the tracker its numbers."""
    if not training.accelerator.is_main_process:
        return
    values = {"step": training.progress.step, "minutes": training.progress.minutes, **values}
    with (Path(training.recipe.output_dir) / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
    figures = values.pop("figures", {}) | values.pop("sets", {})
    scores = {f"{kind}/{name}": value for kind, row in figures.items() for name, value in row.items()}
    training.accelerator.log({**values, **scores}, step=training.progress.step)


if __name__ == "__main__":
    main()
