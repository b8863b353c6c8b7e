"""Referring data: one schema (schema.py), readers for all kinds of files (load.py), and the scenes drawn here."""

from .load import load_referring_dataset
from .schema import REFERRING_FEATURES, ReferringDataError, decode_mask

__all__ = ["REFERRING_FEATURES", "ReferringDataError", "decode_mask", "load_referring_dataset"]
