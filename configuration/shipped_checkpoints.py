"""Where the checkpoints lie that ship with the package, in a checkout and installed: hub/checkpoints."""

from pathlib import Path

CHECKPOINTS = Path(__file__).parents[1] / "hub" / "checkpoints"
PHOTOS_CHECKPOINT = CHECKPOINTS / "m3dec-photos"  # answers about photographs; the default
SCENES_CHECKPOINT = CHECKPOINTS / "m3dec-scenes"  # knows drawn scenes only
