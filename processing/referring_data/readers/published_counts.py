"""How many references and sentences each official split has, as its publishers and the field's papers count them."""

import logging

import datasets
import pyarrow.compute as pc

logger = logging.getLogger(__name__)

# (data set, who made the splits) → split → (references, sentences); None where no figure was found.
PUBLISHED_COUNTS = {
    ("refcoco", "unc"): {
        "train": (42_404, 120_624),
        "val": (3_811, 10_834),
        "testA": (1_975, 5_657),
        "testB": (1_810, 5_095),
    },
    ("refcoco", "google"): {"train": (40_000, None), "val": (5_000, None), "test": (5_000, None)},
    ("refcoco+", "unc"): {
        "train": (42_278, 120_191),
        "val": (3_805, 10_758),
        "testA": (1_975, 5_726),
        "testB": (1_798, 4_889),
    },
    ("refcocog", "umd"): {"train": (42_226, 80_512), "val": (2_573, 4_896), "test": (5_023, 9_602)},
    # Found in one place only.
    ("refcocog", "google"): {"train": (44_822, 85_474), "val": (5_000, 9_536)},
}
REPORTED = (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd"))  # whose splits papers report


def count(table: datasets.Dataset) -> dict[str, int]:
    """References, sentences and images of one split."""
    columns = table.select_columns(["sentences", "image_id"]).with_format("arrow")[:]
    return {
        "references": len(table),
        "sentences": pc.sum(pc.list_value_length(columns["sentences"])).as_py() or 0,
        "images": len(pc.unique(columns["image_id"])),
    }


def compare_with_published(splits: datasets.DatasetDict, dataset: str, split_by: str) -> None:
    """Log a warning for each split whose counts are not the published ones."""
    for split, published in PUBLISHED_COUNTS.get((dataset, split_by), {}).items():
        name = f"{dataset} ({split_by})"
        if split not in splits:
            logger.warning("%s was published with a split %r, which is not here.", name, split)
            continue
        ours = count(splits[split])
        for what, figure in zip(("references", "sentences"), published, strict=True):
            if figure is not None and ours[what] != figure:
                logger.warning(f"{name} {split} was published with {figure:,} {what}, but here are {ours[what]:,}.")
