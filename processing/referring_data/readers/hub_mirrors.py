"""The data sets' mirrors on the Hub, and Parquet copies of them under any name: told apart by their columns."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from m3dec.processing.referring_data.schema import REFERRING_FEATURES, ReferringDataError

from .coco_records import row_without_image
from .images import ImageFolder, check_image_size, image_size
from .published_counts import PUBLISHED_COUNTS, REPORTED
from .tables import READERS, digest_of, with_images, with_images_inside

SENTENCES_PER_REFERENCE = 1_000  # where a mirror has no sent_id: sent_id = 1000 ref_id + place


def read_hub_mirror(
    name: str | Path,
    split: str | None = None,
    image_root: str | Path | None = None,
    streaming: bool = False,
    on_missing: str = "error",
    revision: str | None = None,
) -> datasets.DatasetDict | datasets.IterableDatasetDict | datasets.Dataset | datasets.IterableDataset:
    """Read a mirror, or a folder with a copy of its Parquet files.

    Known are the columns of jxu124/refcoco, refcocoplus and refcocog (with image_root); jxu124/refcoco-benchmark;
    lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg; moondream/refcoco-m; and what `prepare_data.py` writes.

    Args:
        name: a data set on the Hub, or a folder.
        split: one split; all where it is not given. Splits have the names of the official files (`val`, `testA`, …),
            whatever the mirror calls them.
        image_root: the folder of COCO's train2014 images, for a mirror that has none itself.
        streaming: read rows as they are asked for, without a copy on disk.
        on_missing: "error" where images of image_root are missing, or "skip" to leave out what refers to them.
        revision: of the data set on the Hub.

    Returns:
        Tables with `REFERRING_FEATURES`, by the names of the splits, or the table of `split`.

    Raises:
        ReferringDataError: unknown columns, no such split, or a row that contradicts itself.
        MissingImagesError: images are not there and on_missing is "error".
    """
    loaded = datasets.load_dataset(str(name), streaming=streaming, revision=revision)
    mirror = recognise(next(iter(loaded.values())).column_names or list(first_row(loaded)), str(name))
    files = functools.cache(lambda: datasets.load_dataset_builder(str(name), revision=revision).config.data_files)
    names = {}  # ours → theirs
    for theirs, table in loaded.items():
        ours = official_name(mirror, theirs, table, files)
        if ours in names:
            raise ReferringDataError(
                f"A split is there once, but {name} has {ours!r} twice, as {names[ours]!r} and as {theirs!r}. Is it a "
                "copy that was put together from several?"
            )
        names[ours] = theirs
    convert = functools.partial(_converted, mirror, name, image_root, on_missing)
    if split is None:
        splits = {ours: convert(loaded[theirs], ours) for ours, theirs in names.items()}
        return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(splits)
    if split not in names:
        raise ReferringDataError(no_such_split(split, names, str(name)))
    return convert(loaded[names[split]], split)


@dataclass(frozen=True)
class Mirror:
    """One layout in which data sets are on the Hub."""

    name: str  # one data set that has it
    columns: frozenset[str]  # what is read
    rows: Callable[[dict, int], Iterator[dict]] | None  # from a row and its number to rows of ours; None: it is ours
    has_images: bool = True


def recognise(columns: list[str], name: str) -> "Mirror":
    """The mirror that has `columns`.

    Raises:
        ReferringDataError: none has; the message names what the most similar one has and `columns` lack.
    """
    for mirror in MIRRORS:
        if mirror.columns <= set(columns):
            return mirror
    nearest = max(MIRRORS, key=lambda mirror: len(mirror.columns & set(columns)) / len(mirror.columns))
    raise ReferringDataError(
        f"{name} has no column {', '.join(sorted(nearest.columns - set(columns)))}, which {nearest.name}, the most "
        f"similar of the known mirrors, has. The columns found are {', '.join(columns)}. Rename them, or write the "
        "data in the layout of source 'coco'."
    )


def official_name(mirror: Mirror, theirs: str, table, files: Callable[[], dict] = dict) -> str:
    """What the split `theirs` of a mirror is called in the official files, or a name that says what it is.

    `files` gives the data files of each split. It is asked where a stream does not say how many rows it has.
    """
    name = "val" if theirs in ("validation", "valid") else theirs
    if mirror.rows is _joined_rows:
        return first_row({theirs: table})["split"]  # jxu124's "test" is testA
    if mirror.rows is _cleaned_rows:
        return "val" if theirs == "train" else name  # `datasets` calls files without a split "train"
    if mirror.rows is _question_rows and name in ("val", "test"):
        # In the mirrors of RefCOCO and RefCOCOg, val holds two official splits: by UNC or UMD, and by Google.
        single = [PUBLISHED_COUNTS[reported].get(name, (None,))[0] for reported in REPORTED]
        rows = num_rows(table)
        rows = _rows_of_files(files().get(theirs, ())) if rows is None else rows
        return name if rows in single else {"val": "val_mixed", "test": "test_google"}[name]
    return name


def no_such_split(split: str, names: dict[str, str], name: str) -> str:
    """The sentence for a split that is not there; no other split is given in its place."""
    reason = ""
    if f"{split}_mixed" in names:
        reason = f" Its {split} mixes two official splits (unc or umd, and google), so figures on it are nobody's."
    if f"{split}_google" in names:
        reason = f" Its {split} is of the splits by Google, which papers do not report."
    if split == "train":
        reason = " It is for evaluation only."
    return f"{name} has no split {split!r}; it has {', '.join(map(repr, names))}.{reason} Choose one of these."


def first_row(tables: dict) -> dict:
    """The first row of the first table, its image not decoded."""
    return next(iter(_undecoded(next(iter(tables.values())))))


def num_rows(table) -> int | None:
    """How many rows a table has; None where a stream does not say."""
    if isinstance(table, datasets.Dataset):
        return len(table)
    known = (table.info.splits or {}).get(str(table.split))
    return known.num_examples if known else None


def _rows_of_files(paths) -> int | None:
    """How many rows Parquet files have, on disk or on the Hub; None for other files. Only their last bytes are read."""
    total = 0
    try:
        for path in paths:
            with fsspec.open(str(path)) as file:
                total += pq.read_metadata(file).num_rows
    except pa.ArrowInvalid:
        return None
    return total


def _undecoded(table):
    has_image = "image" in (table.column_names or [])
    return table.cast_column("image", datasets.Image(decode=False)) if has_image else table


def _converted(mirror: Mirror, name, image_root, on_missing: str, table, split: str):
    """One split in our schema."""
    if mirror.rows is None:
        return _prepared(table, split, str(name))
    if not mirror.has_images and image_root is None:
        raise ReferringDataError(
            f"{name} holds no images. Give image_root=…, the folder of COCO's train2014 (or train2017) images."
        )
    streaming = isinstance(table, datasets.IterableDataset)
    images = None if mirror.has_images else ImageFolder(image_root)
    with_image = streaming or mirror.has_images  # else the images are looked for below
    features = datasets.Features({k: v for k, v in REFERRING_FEATURES.items() if k != "image" or with_image})
    convert = functools.partial(
        _convert_batch,
        rows=mirror.rows,
        split=split,
        image_root=str(image_root) if streaming and images else None,
        on_missing=on_missing,
        columns=list(features),
        readers=digest_of(READERS),  # for the cache of 🤗 Datasets, which does not look at the code
    )
    settings = {"batched": True, "batch_size": 16, "with_indices": True, "remove_columns": table.column_names}
    if streaming:  # a stream's map that is told the features would take its images for decoded ones
        return _undecoded(table).map(convert, **settings).cast(features)
    table = _undecoded(table).map(convert, **settings, features=features, desc=f"reading {split}")
    return table if with_image else with_images(table, images, on_missing, keep=[])


def _prepared(table, split: str, name: str):
    """One split that prepare_data.py wrote."""
    found = table.features or {}
    for column, feature in REFERRING_FEATURES.items():  # `cast` would fill a missing field with nulls
        if column in found and column != "image" and _fields(found[column]) != _fields(feature):
            raise ReferringDataError(
                f"Column {column} of {split!r} is {feature} where prepare_data.py wrote it, but {found[column]} in "
                f"{name}. The columns found are {', '.join(found)}. Is it a copy whose fields were renamed?"
            )
    table = table.select_columns(list(REFERRING_FEATURES))
    table = table if table.features == REFERRING_FEATURES else table.cast(REFERRING_FEATURES)
    return with_images_inside(table, name)


def _fields(feature):
    """The names of the fields inside a column."""
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _fields(feature.feature)
    return {name: _fields(inner) for name, inner in feature.items()} if isinstance(feature, dict) else None


def _convert_batch(batch: dict, numbers: list[int], rows, split, image_root, on_missing, columns, readers) -> dict:
    """Some rows of a mirror as a batch of ours; one row of a mirror may hold several references."""
    images = ImageFolder(image_root) if image_root else None
    converted = {name: [] for name in columns}
    for number, values in zip(numbers, zip(*batch.values(), strict=True), strict=True):
        try:
            found = list(rows(dict(zip(batch, values, strict=True)), number))
        except ReferringDataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            lacks = f"no {error} in one of its columns" if isinstance(error, KeyError) else f"a wrong value ({error})"
            there = ", ".join(f"{name} ({type(value).__name__})" for name, value in zip(batch, values, strict=True))
            raise ReferringDataError(
                f"Row {number} of {split!r} has {lacks}. The columns found are {there}. Is it a copy whose fields were "
                "renamed or changed?"
            ) from error
        for row in found:
            if row["split"] not in (split, None):
                raise ReferringDataError(
                    f"All rows of a split are of one official split, but {split!r} holds reference {row['ref_id']} of "
                    f"{row['split']!r}. Is it a copy that was put together from several?"
                )
            if images is not None:
                path = images.find_all([row["file_name"]], on_missing).get(row["file_name"])
                if path is None:  # and on_missing is "skip"
                    continue
                row["image"] = {"path": path, "bytes": None}
            for name in columns:
                converted[name].append(row[name])
    return converted


def _joined_rows(row: dict, number: int) -> Iterator[dict]:
    """jxu124/refcoco and its like: one row a reference, COCO's records as JSON beside it, no image."""
    record, annotation = _parsed(row, "raw_image_info"), _parsed(row, "raw_anns")
    annotation = {**annotation, "id": row["ann_id"], "category_id": row["category_id"]}
    sentences = _sentences(row["sentences"])
    yield _row(row["ref_id"], row["split"], {**record, "id": row["image_id"]}, annotation, sentences)


def _benchmark_rows(row: dict, number: int) -> Iterator[dict]:
    """jxu124/refcoco-benchmark: one row an image, with all its references."""
    for entry in _records(row["ref_list"]):
        ref, annotation = entry["ref_info"], dict(entry["ann_info"])
        if isinstance(annotation["segmentation"], str):
            annotation["segmentation"] = _parsed(annotation, "segmentation", list | dict)
        record = {**row["image_info"], "id": annotation["image_id"]}
        check_image_size(row["image"]["bytes"], record["height"], record["width"], f"the image of row {number}")
        # Its splits have the full names of eleven official ones; a ref has only the short name.
        yield _row(ref["ref_id"], None, record, annotation, _sentences(ref["sentences"]), row["image"])


def _question_rows(row: dict, number: int) -> Iterator[dict]:
    """lmms-lab/RefCOCO and its like: one row a reference, the sentences as answers, ONE polygon of all parts."""
    # COCO_train2014_000000581857_3.jpg: the image's number, then the reference's place
    found = re.search(r"(\d{12})(?:_\d+)?\.\w+$", row["file_name"] or "")
    if found is None:
        raise ReferringDataError(
            f"file_name holds the number of COCO's image, but row {number} has {row['file_name']!r:.80}. Correct it."
        )
    record = {"id": int(found[1]), "file_name": f"COCO_train2014_{found[1]}.jpg", **_size_of(row["image"], number)}
    identity = int(row["question_id"]) if str(row["question_id"]).isdigit() else number
    annotation = {"id": identity, "category_id": None, "bbox": list(row["bbox"]), "segmentation": [row["segmentation"]]}
    answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
    yield _row(number, None, record, annotation, _numbered(answers, number), row["image"]) | {"ann_id": []}


def _cleaned_rows(row: dict, number: int) -> Iterator[dict]:
    """moondream/refcoco-m: one row an image, with cleaned masks as run lengths."""
    record = {"id": int(row["image_id"]), "file_name": row["file_name"], **_size_of(row["image"], number)}
    for place, sample in enumerate(_records(row["samples"])):
        identity = int(sample["id"]) if str(sample["id"]).isdigit() else SENTENCES_PER_REFERENCE * number + place
        runs = {"size": sample["mask"]["size"], "counts": sample["mask"]["counts"]}
        annotation = {"id": identity, "category_id": None, "bbox": list(sample["bbox"]), "segmentation": runs}
        yield _row(identity, None, record, annotation, _numbered(sample["sentences"], identity), row["image"])


JOINED = "ref_id ann_id image_id category_id split sentences raw_anns raw_image_info"
QUESTIONS = "question_id image answer segmentation bbox file_name"
MIRRORS = (
    Mirror("what prepare_data.py writes", frozenset(REFERRING_FEATURES), None),
    Mirror("jxu124/refcoco", frozenset(JOINED.split()), _joined_rows, has_images=False),
    Mirror("jxu124/refcoco-benchmark", frozenset(["image", "image_info", "ref_list"]), _benchmark_rows),
    Mirror("lmms-lab/RefCOCO", frozenset(QUESTIONS.split()), _question_rows),
    Mirror("moondream/refcoco-m", frozenset(["image", "image_id", "file_name", "samples"]), _cleaned_rows),
)


def _row(ref_id, split, record: dict, annotation: dict, sentences: list[dict], image: dict | None = None) -> dict:
    """A row of ours, with the bytes of its embedded image."""
    row = row_without_image(ref_id=ref_id, split=split, image=record, annotations=[annotation], sentences=sentences)
    return row if image is None else row | {"image": {"bytes": image["bytes"], "path": None}}


def _size_of(image: dict, number: int) -> dict[str, int]:
    height, width = image_size(image["bytes"], f"the image of row {number}")
    return {"height": height, "width": width}


def _records(value) -> list[dict]:
    """A list of records, which older copies hold as a record of lists."""
    if isinstance(value, dict):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return value


def _sentences(value) -> list[dict]:
    """The official files' sentences, which have all of these."""
    return [{name: sentence[name] for name in ("sent_id", "sent", "raw")} for sentence in _records(value)]


def _parsed(row: dict, column: str, kind=dict):
    try:
        value = json.loads(row[column])
    except (TypeError, ValueError, RecursionError) as error:
        raise ReferringDataError(f"{column} is a string of JSON, but one is {row[column]!r:.80}: {error}") from error
    if not isinstance(value, kind):
        raise ReferringDataError(f"{column} is a JSON object of COCO's, but one is {row[column]!r:.80}.")
    return value


def _numbered(sentences: list[str], ref_id: int) -> list[dict]:
    return [
        {"sent_id": SENTENCES_PER_REFERENCE * ref_id + place, "sent": text, "raw": text}
        for place, text in enumerate(sentences)
    ]
