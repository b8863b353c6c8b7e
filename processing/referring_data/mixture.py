"""Several sets in one training: each image keeps its set, and no photograph is trained on that any set holds out."""

import hashlib
import logging
import os
import re
from pathlib import PurePosixPath

import datasets
import pyarrow.compute as pc
from tqdm import tqdm

from m3dec.processing.referring_data.readers.tables import bytes_of, undecoded_images

from .sampling import references_by_image
from .schema import REFERRING_FEATURES, ReferringDataError

logger = logging.getLogger(__name__)


def numbered_apart(sets: list[datasets.DatasetDict]) -> list[datasets.DatasetDict]:
    """The same sets with new image_ids, counted from 0: two sets may use one number for different images.

    An image is an (image_id, file_name) of a set. It has one number in all splits of its set, and no image of another
    set has that number. ref_id and sent_id stay those of the files, so they may repeat.
    """
    numbers, renumbered = {}, []
    for place, splits in enumerate(sets):
        tables = {}
        for split, table in splits.items():
            column = [0] * len(table)
            for image, rows in references_by_image(table).items():
                number = numbers.setdefault((place, *image), len(numbers))
                for row in rows:
                    column[row] = number
            table = table.remove_columns("image_id")
            table = table.add_column("image_id", column, feature=REFERRING_FEATURES["image_id"])
            tables[split] = table.select_columns(list(REFERRING_FEATURES))  # in their order
        renumbered.append(datasets.DatasetDict(tables))
    return renumbered


def without_held_out(sets: list[datasets.DatasetDict]) -> list[datasets.Dataset]:
    """The split "train" of each set, without a photograph that any of the sets has in another split.

    Two photographs are the same if their file names hold the same number of COCO, in the style of 2014 or of 2017, or
    if their files have the same bytes. How many are left out is logged.

    Raises:
        ReferringDataError: a set has no split "train", or nothing of it is left.
    """
    for splits in sets:
        if "train" not in splits:
            raise ReferringDataError(f"A set to train on has a split 'train', but one has {', '.join(splits)} only.")
    training = [splits["train"] for splits in sets]
    held_out = [table for splits in sets for split, table in splits.items() if split != "train"]
    by_number, by_bytes = of_same_number(training, held_out), of_same_bytes(training, held_out)
    kept = []
    for number, table in enumerate(training):
        found = by_number[number] | by_bytes[number]
        leaks = [rows for rows in references_by_image(table).values() if rows[0] in found]
        gone = {row for rows in leaks for row in rows}
        if gone:
            logger.warning(
                f"{len(leaks)} training images with {len(gone)} references of set {number + 1} are left out: a val or "
                "test split of a set has them."
            )
        if len(gone) == len(table):
            raise ReferringDataError(
                f"A set to train on has images that no set holds out, but set {number + 1} of the mixture has none. "
                "Leave it out of the mixture, or split it otherwise."
            )
        kept.append(table.select([row for row in range(len(table)) if row not in gone]) if gone else table)
    return kept


def coco_number(file_name: str) -> int | None:
    """COCO's number of the photograph in a file named as COCO names them, such as COCO_train2014_000000000009.jpg or
    000000000009.jpg; None for any other name."""
    found = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})\.\w+", PurePosixPath(file_name).name)
    return int(found[1]) if found else None


def of_same_number(training: list[datasets.Dataset], held_out: list[datasets.Dataset]) -> list[set[int]]:
    """For each table of `training` the first rows of its images with COCO's number of an image of `held_out`."""
    numbers = {coco_number(name) for table in held_out for _, name in references_by_image(table)} - {None}
    return [
        {rows[0] for (_, name), rows in references_by_image(table).items() if coco_number(name) in numbers}
        for table in training
    ]


def of_same_bytes(training: list[datasets.Dataset], held_out: list[datasets.Dataset]) -> list[set[int]]:
    """For each table of `training` the first rows of its images whose file is that of an image of `held_out`.

    Only files of the same length are read, each once, and none where all files are named by COCO's numbers.
    """
    tables = [*training, *held_out]
    images = [references_by_image(table) for table in tables]
    if all(coco_number(name) is not None for table in images for _, name in table):
        return [set() for _ in training]
    lengths = [file_lengths(table) for table in tables]
    seen = [{lengths[number][rows[0]] for rows in table.values()} for number, table in enumerate(images)]
    shared = set().union(*seen[: len(training)]) & set().union(*seen[len(training) :])
    first_rows = [
        [rows[0] for rows in table.values() if lengths[number][rows[0]] in shared]
        for number, table in enumerate(images)
    ]
    digests, known = [], {}  # of each table row → digest; path → digest
    with tqdm(total=sum(map(len, first_rows)), desc="comparing files of images", unit="image", delay=2) as progress:
        for table, rows in zip(tables, first_rows, strict=True):
            images_of_table, digests_of_table = undecoded_images(table), {}
            for row in rows:
                image = images_of_table[row]["image"]
                path = None if image["bytes"] else image["path"]
                digests_of_table[row] = known.get(path) or hashlib.sha256(bytes_of(image)).digest()
                if path:
                    known[path] = digests_of_table[row]
                progress.update()
            digests.append(digests_of_table)
    wanted = {digest for table in digests[len(training) :] for digest in table.values()}
    return [{row for row, digest in table.items() if digest in wanted} for table in digests[: len(training)]]


def file_lengths(table: datasets.Dataset) -> list[int]:
    """The bytes that the file of each row's image has; no file is opened."""
    lengths, known = [], {}
    with tqdm(total=len(table), desc="looking for files of images", unit="row", delay=2) as progress:
        for part in table.select_columns("image").with_format("arrow").iter(batch_size=1000):
            column = part["image"]
            inside = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
            paths = pc.struct_field(column, "path").to_pylist()
            for length, path in zip(inside, paths, strict=True):
                if not length and path not in known:
                    known[path] = os.path.getsize(path)
                lengths.append(length or known[path])
            progress.update(len(inside))
    return lengths
