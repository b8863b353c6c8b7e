"""Leaving and coming back: what goes out, what comes in, where it runs elsewhere, and the checkpoints that ship."""

from m3dec.configuration.shipped_checkpoints import PHOTOS_CHECKPOINT, SCENES_CHECKPOINT

SHIPPED_CHECKPOINT = SCENES_CHECKPOINT  # its name from when it was the only one

__all__ = ["PHOTOS_CHECKPOINT", "SCENES_CHECKPOINT", "SHIPPED_CHECKPOINT"]
