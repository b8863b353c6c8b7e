"""Leaving and coming back: pretrained parts, and the checkpoints that ship with the package."""

from pathlib import Path

PHOTOS_CHECKPOINT = Path(__file__).parent / "checkpoints" / "m3dec-photos"  # answers about photographs; the default
SCENES_CHECKPOINT = Path(__file__).parent / "checkpoints" / "m3dec-scenes"  # knows drawn scenes only
SHIPPED_CHECKPOINT = SCENES_CHECKPOINT  # its name from when it was the only one
