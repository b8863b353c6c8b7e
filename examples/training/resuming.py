"""A training that stops and goes on as if nothing had happened: its checkpoints, and the signals that ask for one."""

import contextlib
import dataclasses
import json
import signal
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather

from .checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint
from .parts import freezes_text_encoder
from .report import read_metrics, write_whole
from .state import Progress, Training

SIGNALS = (0, signal.SIGUSR1, signal.SIGTERM)  # none; save and go on; save and stop


@contextlib.contextmanager
def caught_signals():
    """A list to which SIGUSR1 and SIGTERM are added as they come."""
    received = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in SIGNALS[1:]}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def latest_signal(received: list[int], accelerator: Accelerator) -> int:
    """The signal that any process got since the last call, SIGTERM before the other; 0 for none."""
    new = received[:]
    del received[: len(new)]  # not one that comes right now
    asked = max((SIGNALS.index(number) for number in new), default=0)
    if accelerator.num_processes > 1:
        asked = gather(torch.tensor([asked], device=accelerator.device)).max().item()
    return SIGNALS[asked]


def save_checkpoint(training: Training) -> None:
    """Everything that `resume` needs to go on as if nothing had happened."""
    state = {name: part.state_dict() for name, part in parts_with_state(training).items()}
    state["progress"], state["settings"] = dataclasses.asdict(training.progress), lasting_settings(training)
    # Dropout's random numbers, and each process's own batch norms.
    process = {"rng": torch.get_rng_state(), "buffers": dict(training.model.named_buffers())}
    if torch.cuda.is_available():
        process["cuda_rng"] = torch.cuda.get_rng_state()
    folder, limit = Path(training.recipe.output_dir) / "checkpoints", training.recipe.checkpoints_total_limit
    write_checkpoint(folder, training.progress.step, state, process, training.accelerator, limit)


def resume(training: Training) -> None:
    """Go on from a checkpoint. Figures of later steps leave metrics.jsonl, for they will be measured again. A best/ of
    a later step stays until one is better."""
    output, wanted = Path(training.recipe.output_dir), training.recipe.resume_from_checkpoint
    path = newest_checkpoint(output / "checkpoints") if wanted == "newest" else Path(wanted)
    if path is None:
        training.accelerator.print(f"no whole checkpoint in {output / 'checkpoints'} yet: starting at step 0")
    else:
        load_checkpoint(training, path)
        training.accelerator.print(f"going on from {path}, step {training.progress.step}")
    metrics = output / "metrics.jsonl"
    if training.accelerator.is_main_process and metrics.exists():
        lines = read_metrics(metrics)
        best = max((line["figures"]["all"]["miou"] for line in lines if "figures" in line), default=-1.0)
        if best > training.progress.best:
            print(f"best/ stays the model of a later step, of mIoU {best:.4f}, until one is better")
            training.progress.best = best
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= training.progress.step]
        write_whole(metrics, lambda path: path.write_text("".join(kept), encoding="utf-8"))


def load_checkpoint(training: Training, path: Path) -> None:
    """Put everything back to where `save_checkpoint` was, but learning rates and decay to what the recipe says now."""
    try:
        state, process = read_checkpoint(path, training.accelerator)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    parts, schedule = parts_with_state(training), training.schedule
    found, expected = state.get("settings"), lasting_settings(training)
    if found != expected or parts.keys() | {"progress", "settings"} != state.keys():
        raise SystemExit(
            f"A training goes on with the recipe it was started by, but {path} has {', '.join(sorted(state))} of "
            f"{found}, and this recipe {', '.join(sorted(parts))} of {expected}. Learning rates, decay, lengths and "
            "intervals may change."
        )
    settings = [
        {key: group[key] for key in ("initial_lr", "weight_decay")} for group in training.optimizer.param_groups
    ]
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


def parts_with_state(training: Training) -> dict:
    """The parts of which a checkpoint holds the state."""
    parts = {"model": training.model, "optimizer": training.optimizer, "schedule": training.schedule}
    parts |= {"average": training.average, "scaler": training.accelerator.scaler}
    return {name: part for name, part in parts.items() if part is not None}
