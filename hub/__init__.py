"""Leaving and coming back: pretrained parts, and the checkpoint that ships with the package."""

from pathlib import Path

SHIPPED_CHECKPOINT = Path(__file__).parent / "checkpoints" / "m3dec-scenes"
