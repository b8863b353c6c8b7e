"""Train M3Dec by a recipe, on one process or several.

    python examples/train.py examples/recipes/scenes.yaml
    python examples/train.py examples/recipes/refcoco_darknet53.yaml --data_root data --learning_rate 1e-3
    torchrun --nproc_per_node 4 examples/train.py examples/recipes/refcoco_darknet53.yaml
    accelerate launch --config_file examples/launch/one_gpu.yaml examples/train.py examples/recipes/your_data.yaml

Writes output_dir/best (by mIoU on the evaluation split) and output_dir/last, both complete `from_pretrained` folders
with a model card, and beside them recipe.yaml, metrics.jsonl, rows.parquet (the last answers), curves.png,
diagnostics.png and samples.png; with --checkpointing_steps N, and on SIGTERM and SIGUSR1, output_dir/checkpoints, from
which --resume_from_checkpoint newest goes on as if nothing had happened.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from m3dec import M3DecForImageSegmentation
from m3dec.examples.evaluation.loop import DEFAULT_THRESHOLD, evaluate
from m3dec.examples.evaluation.results import Answers, write_rows
from m3dec.examples.evaluation.tables import by_kind, by_set, peak_rates, text_table
from m3dec.examples.training.diagnostics import diagnose, few_batches, gradient_norms
from m3dec.examples.training.parts import freezes_text_encoder, normalized
from m3dec.examples.training.recipe import TrainingRecipe, parse_recipe, write_recipe
from m3dec.examples.training.report import draw_curves, draw_samples
from m3dec.examples.training.resuming import caught_signals, latest_signal, resume, save_checkpoint
from m3dec.examples.training.state import Training, build_accelerator, locked
from m3dec.examples.user_errors import exits_with_message
from m3dec.hub.outward.model_card import write_model_card
from m3dec.hub.outward.push import PushError, open_repository, push_model

BLIND_CHECK = 200  # steps after the warm-up, by which a training that works follows the words


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
    with locked(output) if accelerator.is_main_process else contextlib.nullcontext():
        training = Training(recipe, accelerator)
        if recipe.resume_from_checkpoint:
            resume(training)
        repository = open_own_repository(recipe, accelerator) if recipe.push_to_hub else None
        if accelerator.is_main_process:
            write_recipe(recipe, output / "recipe.yaml")
        train(training)
        if repository and accelerator.is_main_process:
            push_best(recipe, repository, training.progress.step)
        accelerator.end_training()


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
    start = time.monotonic() - 60 * progress.minutes
    hidden = not accelerator.is_local_main_process
    bar = tqdm(total=training.total_steps, initial=progress.step, desc="training", disable=hidden)
    training_mode(training)
    with bar, caught_signals() as signals:
        while progress.step < training.total_steps:
            for window in rest_of_epoch(training):
                losses = train_step(training, window)
                progress.step += 1
                progress.minutes = (time.monotonic() - start) / 60
                last = progress.step == training.total_steps
                bar.update()
                bar.set_postfix(loss=f"{losses['loss'].item():.3f}")
                if progress.step % recipe.logging_steps == 0:
                    log(training, losses, bar.format_dict["rate"])
                if progress.step % (recipe.eval_steps or training.steps_per_epoch) == 0 or last:
                    evaluate_and_save(training, losses)
                elif progress.step == recipe.num_warmup_steps + BLIND_CHECK:
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
    if logged:
        losses |= gradient_norms(training.model)
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
    targets = model.language_reconstruction.project(words, sentences, attention_mask.bool())
    return targets.std(dim=0, correction=0).mean()


def training_mode(training: Training) -> None:
    """As `model.train()`, but frozen batch norms keep their statistics, and a frozen BERT drops nothing out."""
    training.wrapped.train()
    backbone = training.model.model.vision_encoder.backbone
    parts = {"none": (), "backbone": backbone.modules(), "all": training.model.modules()}
    for module in parts[training.recipe.frozen_batch_norms]:
        if isinstance(module, _BatchNorm):
            module.eval()
    if freezes_text_encoder(training.recipe, training.model):
        training.model.model.language_encoder.text_encoder.eval()


def log(training: Training, losses: dict[str, Tensor], steps_per_second: float | None) -> None:
    """Write a line of losses, the learning rate and the speed."""
    losses = {name: loss.item() for name, loss in training.accelerator.reduce(losses, "mean").items()}
    rate = max(training.schedule.get_last_lr())
    speed = (steps_per_second or 0.0) * training.step_size
    record(training, **losses, learning_rate=rate, images_per_second=speed)


def evaluate_and_save(training: Training, losses: dict[str, Tensor]) -> None:
    """Measure, write the figures, the drawings, and the folders last/ and, if it is the best so far, best/."""
    progress, output = training.progress, Path(training.recipe.output_dir)
    results = evaluate_held_out(training)
    figures, sets = by_kind(results), by_set(results, training.held_out_sets)
    loss = training.accelerator.reduce(losses["loss"], "mean").item()
    improved = figures["all"]["miou"] > progress.best or not (output / "best").exists()
    progress.best = max(progress.best, figures["all"]["miou"])
    peaks, chance = warn_if_blind(training, results)
    measured = {"figures": figures} | ({"sets": sets} if sets else {})
    if not math.isnan(peaks):
        measured |= {"peak_in_target": peaks, "blind_chance": chance}
    if training.accelerator.is_main_process:
        tqdm.write(f"step {progress.step}, {progress.minutes:.1f} min, loss {loss:.4f}\n{text_table(figures)}")
        if sets:
            tqdm.write(text_table(sets, "set"))
        save(training, figures, output / "last")
        if improved:
            save(training, figures, output / "best")
        data, split = describe_held_out(training.recipe), training.recipe.eval_split
        answers = Answers(str(output / "last"), data, split, DEFAULT_THRESHOLD, results)
        write_rows(output / "rows.parquet", answers)
        batches = few_batches(training.held_out, training.processor, training.model.config)
        measured |= diagnose(training.evaluated, batches)
        record(training, loss=loss, **measured)  # after the folders: `resume` takes a line here as their proof
        draw_curves(output / "metrics.jsonl", output / "curves.png")
        draw_samples(training.evaluated, training.processor, training.held_out, output / "samples.png")
    training_mode(training)
    training.accelerator.wait_for_everyone()


def evaluate_held_out(training: Training) -> list:
    """The results of all expressions held out, of the model as it would be saved now."""
    model, accelerator = training.evaluated, training.accelerator
    broadcast(list(model.buffers()))  # each process has batch norms of its own; the first one's are saved
    at_once = training.recipe.per_device_eval_batch_size
    results = evaluate(model, training.processor, training.held_out, accelerator, at_once)
    training_mode(training)
    return results


def warn_if_blind(training: Training, results: list) -> tuple[float, float]:
    """Say so where the answers do not depend on the words; return `peak_rates`."""
    peaks, chance = peak_rates(results)
    step, main = training.progress.step, training.accelerator.is_main_process
    if main and step >= training.recipe.num_warmup_steps + BLIND_CHECK and peaks <= 1.25 * chance:
        tqdm.write(
            f"STUCK BLIND at step {step}? The answers peak in their target for {peaks:.0%} of the expressions; a model "
            f"that never reads them reaches {chance:.0%}. A lower --learning_rate, more --num_warmup_steps, "
            "--max_grad_norm 1 or --model.dice_loss_weight 0.3 have helped."
        )
    return peaks, chance


def save(training: Training, figures: dict, folder: Path) -> None:
    """A complete `from_pretrained` folder with its card, written beside its place and moved there when it is whole."""
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(temporary, ignore_errors=True)
    training.evaluated.save_pretrained(temporary)
    training.processor.save_pretrained(temporary)
    on_gpu = training.accelerator.device.type == "cuda"
    write_model_card(
        temporary,
        {**dataclasses.asdict(training.recipe), "resume_from_checkpoint": None},
        figures,
        describe_held_out(training.recipe),
        training.progress.step,
        counts=training.counts,
        device=torch.cuda.get_device_name() if on_gpu else training.accelerator.device.type.upper(),
        mixed_precision=training.accelerator.mixed_precision,
        num_processes=training.accelerator.num_processes,
        minutes=training.progress.minutes,
        license=training.recipe.license,
    )
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)  # so that a folder half deleted never has the name of a whole one
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def describe_held_out(recipe: TrainingRecipe) -> str:
    return " and ".join(data.describe() for data in (recipe.sets if recipe.eval_mix else [recipe]))


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
