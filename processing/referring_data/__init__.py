"""Referring data: one schema (schema.py), the reader of the official files and the scenes drawn for this project."""

from .refer_files import load_referring_dataset
from .schema import REFERRING_FEATURES, decode_mask

__all__ = ["REFERRING_FEATURES", "decode_mask", "load_referring_dataset"]
