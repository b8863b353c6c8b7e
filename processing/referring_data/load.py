"""Every source of referring data, by its name, into one schema."""

import datasets

from m3dec.processing.referring_data.readers.coco_files import read_coco_files
from m3dec.processing.referring_data.readers.hub_mirrors import read_hub_mirror
from m3dec.processing.referring_data.readers.prepared_shards import read_prepared
from m3dec.processing.referring_data.readers.refer_files import read_grefcoco_files, read_refer_files

SOURCES = {
    "refer": read_refer_files,  # RefCOCO, RefCOCO+, RefCOCOg, RefCLEF (ReferIt) and the scenes, as published
    "grefcoco": read_grefcoco_files,
    "hub": read_hub_mirror,
    "coco": read_coco_files,  # a user's own
    "prepared": read_prepared,  # any of these, by examples/prepare_data.py
}


def load_referring_dataset(source: str, **options) -> datasets.DatasetDict:
    """Load a referring data set as one table per split, one row per reference.

    load_referring_dataset("refer", root="data", dataset="refcoco", split_by="unc", image_root="data/train2014")
    load_referring_dataset("grefcoco", root="data", image_root="data/train2014")
    load_referring_dataset("hub", name="jxu124/refcoco", image_root="data/train2014")
    load_referring_dataset("coco", expressions="my/expressions.csv", instances="my/instances.json", image_root="my")
    load_referring_dataset("prepared", root="outputs/my_data")

    Args:
        source: the kind of files.
        options: what that kind takes; each is documented with its function, `read_refer_files` and so on.

    Returns:
        Tables with `REFERRING_FEATURES`, by the names of the splits.

    Raises:
        ValueError: no such source.
        ReferringDataError: a file is damaged, unsafe, or contradicts another.
        FileNotFoundError: a file or image is not there.
    """
    if source not in SOURCES:
        raise ValueError(f"The source must be one of {', '.join(map(repr, SOURCES))}, but it is {source!r}.")
    return SOURCES[source](**options)
