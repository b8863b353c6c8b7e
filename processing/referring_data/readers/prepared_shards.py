"""Prepared data: Parquet shards with the images inside, each image written once however many rows it has.

    folder/prepared.json                        which data, how many shards and rows; written first
    folder/data/train-00000-of-00008.parquet    and so on, for every split

A shard appears under its name only when it is whole, so a run that was stopped goes on where it was. The folder can be
moved, and uploaded to the Hub as it is.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from m3dec.processing.referring_data.sampling import references_by_image
from m3dec.processing.referring_data.schema import REFERRING_FEATURES, ReferringDataError, area_of_mask

from .coco_records import is_split_name
from .images import check_image
from .tables import bytes_of, undecoded_images, with_images_inside

MANIFEST = "prepared.json"
ROW_GROUP_BYTES = 32 * 2**20  # of images; what a reader holds in memory at once


def write_prepared(splits: datasets.DatasetDict, folder: str | Path, num_shards: int = 8, source: str = "") -> Path:
    """Write every split of `splits` as `num_shards` Parquet files with the images inside.

    Rows are sorted by image. Choose at least as many shards as processes will read them. A split of fewer images than
    shards gets one shard for each image.

    Args:
        splits: tables with `REFERRING_FEATURES`.
        folder: of the shards. Shards of the same data that it holds already are kept.
        num_shards: the number of shards of each split.
        source: a line for the manifest that says what the data are.

    Returns:
        `folder`.

    Raises:
        ReferringDataError: an image is damaged or not of its annotations' size; or the folder holds other data.
    """
    for split in splits:
        if not is_split_name(split):
            raise ReferringDataError(
                f"A split's name becomes a file's, of letters and digits, and is not 'all', but one is {split!r:.60}."
            )
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    order = {split: list(references_by_image(table).values()) for split, table in splits.items()}
    shards = {
        split: [groups[number::count] for number in range(count)]
        for split, groups in order.items()
        for count in [max(1, min(num_shards, len(groups)))]
    }
    manifest = {
        "source": source,
        "contents": {split: digest_of_contents(table) for split, table in splits.items()},
        "rows": {split: [sum(map(len, shard)) for shard in parts] for split, parts in shards.items()},
    }
    _write_manifest(folder, manifest)
    names = {
        (split, number): f"data/{split}-{number:05d}-of-{len(parts):05d}.parquet"
        for split, parts in shards.items()
        for number in range(len(parts))
    }
    with tqdm(total=sum(map(len, splits.values())), desc="preparing", unit="row") as progress:
        for (split, number), name in names.items():
            if not (folder / name).exists():
                _write_shard(splits[split], shards[split][number], folder / name, progress)
            else:
                progress.update(manifest["rows"][split][number])
    return folder


def read_prepared(root: str | Path, streaming: bool = False) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Read what `write_prepared` wrote.

    Args:
        root: the folder.
        streaming: read rows as they are asked for, without a copy in the cache.

    Raises:
        FileNotFoundError: the folder was not prepared.
        ReferringDataError: shards are missing, for instance because the preparation was stopped, or have lost rows.
    """
    files = prepared_files(root)
    splits = datasets.load_dataset("parquet", data_files=files, features=REFERRING_FEATURES, streaming=streaming)
    return type(splits)({split: with_images_inside(table, str(root)) for split, table in splits.items()})


def prepared_files(root: str | Path) -> dict[str, list[str]]:
    """The shards of each split that `write_prepared` wrote into `root`; errors as of `read_prepared`."""
    root = Path(root)
    if not (root / MANIFEST).is_file():
        raise FileNotFoundError(f"Prepared data have a {MANIFEST}, but {root} has none. Run examples/prepare_data.py.")
    try:
        rows = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReferringDataError(f"{root / MANIFEST} is damaged ({error!r}). Prepare the data again.") from error
    files = {}
    for split, parts in rows.items():
        files[split] = [str(root / f"data/{split}-{n:05d}-of-{len(parts):05d}.parquet") for n in range(len(parts))]
        for path, expected in zip(files[split], parts, strict=True):
            try:
                found = pq.read_metadata(path).num_rows if os.path.isfile(path) else 0
            except pa.ArrowException:
                found = "no whole file"
            if found != expected:
                raise ReferringDataError(
                    f"{path} has {expected} rows when it is whole, but {found} were found. Run prepare_data.py again "
                    "with the same arguments; it goes on where it stopped."
                )
    return files


def digest_of_contents(table: datasets.Dataset) -> str:
    """A hash of all rows and images. An image counts by the size and time of its file, or by its bytes."""
    digest = hashlib.sha256()
    images = undecoded_images(table)
    rows = table.remove_columns("image")
    for row in tqdm(rows, desc="comparing", unit="row", disable=len(rows) < 5000):
        digest.update(json.dumps(row).encode())
    for numbers in references_by_image(table).values():
        image = images[numbers[0]]["image"]
        stat = None if image["bytes"] else os.stat(image["path"])
        digest.update(image["bytes"] or f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def check_images(splits: datasets.DatasetDict) -> None:
    """Check every image once, and every mask.

    Raises:
        ReferringDataError: one is of another size than its annotations, or cut off, or a mask is not of its size.
    """
    for split, table in splits.items():
        groups = list(references_by_image(table).values())
        progress = tqdm(groups, desc=f"checking the images of {split}", unit="image")
        for _ in _checked_groups(table.select_columns(["image", "height", "width", "file_name", "mask"]), progress):
            pass


def _checked_groups(table: datasets.Dataset, groups: Iterable[list[int]]) -> Iterator[tuple[bytes, list[dict]]]:
    """For each group of rows, which share an image: the image's bytes, and the rows without it. Both are checked."""
    images, references = undecoded_images(table), table.remove_columns("image")
    for numbers in groups:
        data = bytes_of(images[numbers[0]]["image"])
        rows = [references[number] for number in numbers]
        check_image(data, rows[0]["height"], rows[0]["width"], rows[0]["file_name"])
        for row in rows:
            check_mask(row["mask"], row["height"], row["width"], row["file_name"])
        yield data, rows


def _write_manifest(folder: Path, manifest: dict) -> None:
    """Write the manifest, unless the same one is there already."""
    path = folder / MANIFEST
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != manifest:
            raise ReferringDataError(
                f"{folder} holds other data, or these data before a change, or these data in another number of shards. "
                "Choose another folder, or delete it."
            )
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    temporary.rename(path)


def _write_shard(table: datasets.Dataset, groups: list[list[int]], path: Path, progress: tqdm) -> None:
    temporary = path.with_suffix(".tmp")
    schema = REFERRING_FEATURES.arrow_schema  # with the features in its metadata
    # A dictionary page holds each image once for all rows of its group. It must be allowed to grow that large.
    settings = {"use_dictionary": ["image.bytes"], "dictionary_pagesize_limit": 2**30, "compression": "zstd"}
    with open(temporary, "wb") as file, pq.ParquetWriter(file, schema, **settings) as writer:
        for rows in _row_groups(table, groups):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=len(rows))
            progress.update(len(rows))
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _row_groups(table: datasets.Dataset, groups: list[list[int]]) -> Iterator[list[dict]]:
    """Rows with their images' bytes, as many images at a time as fit into a row group."""
    rows, size = [], 0
    for data, references in _checked_groups(table, groups):
        rows += [{"image": {"bytes": data, "path": None}, **reference} for reference in references]
        size += len(data)
        if size > ROW_GROUP_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def check_mask(mask: dict, height: int, width: int, file_name: str) -> None:
    """Raise a ReferringDataError where a mask is broken or of another size than its image."""
    area_of_mask(mask)
    if list(mask["size"]) != [height, width]:
        raise ReferringDataError(
            f"A mask has the size of its image, but one of {file_name} is {mask['size']} and the image "
            f"{[height, width]} (height, width). Make the data again."
        )
