"""The scores of referring image segmentation."""

from .bootstrap import bootstrap_intervals, paired_bootstrap_intervals
from .score import ReferringIoU, intersection_and_union

__all__ = ["ReferringIoU", "bootstrap_intervals", "intersection_and_union", "paired_bootstrap_intervals"]
