"""The import path of version 0.1.0; the reader lies in readers/coco_files.py."""

from .readers.coco_files import find_faults

__all__ = ["find_faults"]
