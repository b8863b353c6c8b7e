"""Checkpoints of a training that can be trusted: written beside their place, checked by a manifest, then renamed.

    output_dir/checkpoints/step-00000200/training.pt       model, optimizer, schedule, step, best score
                                        /process-0.pt      of each process: random state and batch norms' statistics
                                        /manifest.json     the sha256 of every file; written last

A folder of that name is whole, or the disk lost it afterwards: then its manifest says so, and the one before is taken.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

MANIFEST = "manifest.json"


def write_checkpoint(folder: Path, step: int, training: dict, process: dict, accelerator: Accelerator, limit: int):
    """Write `folder/step-…`, then delete all but the newest `limit` checkpoints.

    `training` is the same on all processes, so the main one's is written; `process` is each process's own. Checkpoints
    of later steps are deleted first: a training that went on from an earlier one makes them anew.

    Raises:
        OSError: the disk is full or fails, at this file; the checkpoints before are as they were.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f"step-{step:08d}.tmp"
    if accelerator.is_main_process:
        for unfinished in folder.glob("step-????????.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    _write(temporary / f"process-{accelerator.process_index}.pt", process)
    if accelerator.is_main_process:
        _write(temporary / "training.pt", training)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        manifest = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        _sync(temporary / MANIFEST)
        _sync(temporary)
        for path in folder.glob("step-????????"):
            if path >= final:  # this step's, where it did not verify, and later ones
                shutil.rmtree(path, ignore_errors=True)
        temporary.rename(final)
        _sync(folder)
        for old in sorted(folder.glob("step-????????"))[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; None where there is none."""
    return next((path for path in sorted(folder.glob("step-????????"), reverse=True) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is what it was when it was written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return all(_sha256(checkpoint / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_checkpoint(checkpoint: Path, accelerator: Accelerator) -> tuple[dict, dict]:
    """`training` and this process's `process`, as they were given to `write_checkpoint`. No code in them is run.

    Raises:
        ValueError: it is not whole, or of another number of processes.
    """
    processes = len(list(checkpoint.glob("process-*.pt")))
    if not is_whole(checkpoint) or processes != accelerator.num_processes:
        raise ValueError(
            f"A training goes on from a whole checkpoint of as many processes, {accelerator.num_processes}, but "
            f"{checkpoint} has {processes} and is {'' if is_whole(checkpoint) else 'not '}whole. Choose another."
        )
    names = ("training.pt", f"process-{accelerator.process_index}.pt")
    return tuple(torch.load(checkpoint / name, map_location="cpu", weights_only=True) for name in names)


def _write(path: Path, content: dict) -> None:
    try:
        with path.open("wb") as file:
            torch.save(content, file)
        _sync(path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save hides a full disk
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def _sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()
