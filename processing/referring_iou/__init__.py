"""The scores of referring image segmentation."""

from .referring_iou import ReferringIoU, intersection_and_union

__all__ = ["ReferringIoU", "intersection_and_union"]
