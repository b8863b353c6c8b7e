"""Scenes: drawn images of a few shapes, each with six expressions that mean exactly one of them.

A two-dimensional relative of CLEVR-Ref+ (Liu et al., CVPR 2019). Distractors share attributes with the target, so a
model that does not read the expression cannot do much better than chance.
"""

from .files import write_scenes
from .language import KINDS
from .layout import COLORS
from .painting import draw_scene

__all__ = ["COLORS", "KINDS", "draw_scene", "write_scenes"]
