"""From a reader's rows to tables on disk, made once and found again while the files they came from are the same."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError

from m3dec.processing.referring_data.schema import REFERRING_FEATURES, ReferringDataError

from .pictures import PictureFolder

# As the schema, without the picture, which is looked for at every loading, and with the split.
_ROW_FEATURES = datasets.Features(
    {name: feature for name, feature in REFERRING_FEATURES.items() if name != "image"}
    | {"split": datasets.Value("string")}
)


# What makes rows: tables made by other code are made again.
READERS = [
    path for folder in Path(__file__).parents[:2] for path in sorted(folder.glob("*.py")) if path.name != "scenes.py"
]


def tables_by_split(
    rows: Callable[..., Iterator[dict]], settings: dict, files: list[Path], pictures: PictureFolder, on_missing: str
) -> datasets.DatasetDict:
    """One table per split of what `rows(**settings)` yields: rows of the schema without "image", and with "split".

    The rows are kept in the cache folder of 🤗 Datasets and made again when `files`, `settings` or the readers' own
    code differ. Pictures are found by each row's file_name, now, and kept as paths.

    Args:
        rows: yields the rows of one split one after the other.
        settings: what `rows` takes; its repr says whether it is the same.
        files: what `rows` reads.
        pictures: where the pictures lie.
        on_missing: "error" or "skip", for pictures that are not there.

    Raises:
        MissingPicturesError: a picture is not there.
        ReferringDataError, FileNotFoundError: whatever `rows` raises.
    """
    digest = digest_of([*READERS, *files], repr(sorted(settings.items())))
    try:
        table = datasets.Dataset.from_generator(rows, features=_ROW_FEATURES, gen_kwargs=settings, fingerprint=digest)
    except DatasetGenerationError as error:
        cause = error.__cause__
        known = isinstance(cause, ReferringDataError)
        if known or not isinstance(cause, TypeError | ValueError | OverflowError | pa.ArrowException):
            raise cause from None
        raise ReferringDataError(  # such as a text for a number, or one of more than 64 bits
            f"{' or '.join(map(str, files)) or 'A file'} holds a value of a kind or size that no referring data have: "
            f"{cause!s:.200}. Correct it."
        ) from cause
    table = with_pictures(table, pictures, on_missing)
    if len(table) == 0:
        raise ReferringDataError(f"None of the pictures is in {pictures.root}. Pass another image_root.")
    # A split's rows are neighbours, so a slice needs no list of indices, which would slow every access down.
    runs = pc.run_end_encode(table.with_format("arrow")[:]["split"].combine_chunks())
    splits, start = {}, 0
    for name, stop in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        splits[name] = table.select(range(start, stop)).select_columns(list(REFERRING_FEATURES))
        start = stop
    return datasets.DatasetDict(splits)


def with_pictures_inside(table: datasets.Dataset | datasets.IterableDataset, name: str):
    """`table`, checked to hold its pictures itself: a path in a stranger's row could lead to any file of this computer.

    Raises:
        ReferringDataError: a picture does not; of a stream, when its row comes.
    """
    if isinstance(table, datasets.IterableDataset):
        rows = table.cast_column("image", datasets.Image(decode=False))
        rows = rows.map(_check_pictures_inside, batched=True, batch_size=16, fn_kwargs={"name": name})
        return rows.cast(table.features)
    if pc.struct_field(table.data.column("image"), "bytes").null_count:
        raise _picture_outside(name)
    return table


def _check_pictures_inside(batch: dict, name: str) -> dict:
    if any(picture is None or picture["bytes"] is None for picture in batch["image"]):
        raise _picture_outside(name)
    return batch


def _picture_outside(name: str) -> ReferringDataError:
    return ReferringDataError(
        f"Prepared rows hold their pictures, but one of {name} is empty or names a file, and such a path may lead "
        "anywhere. Prepare the data again."
    )


def undecoded_pictures(table: datasets.Dataset) -> datasets.Dataset:
    """The column "image" alone, each {"bytes", "path"} as the table holds it."""
    return table.select_columns("image").cast_column("image", datasets.Image(decode=False))


def bytes_of(picture: dict) -> bytes:
    """The file of an undecoded picture."""
    return picture["bytes"] or Path(picture["path"]).read_bytes()


def image_ids(table: datasets.Dataset) -> set[int]:
    """The numbers of the pictures of a table."""
    return set(table.select_columns("image_id").with_format("arrow")[:]["image_id"].to_pylist())


def digest_of(files: list[Path], text: str = "") -> str:
    """A number, in hexadecimal, that is another where one of `files` or `text` is."""
    digest = hashlib.sha256(text.encode())
    for path in files:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()[:32]


def with_pictures(table: datasets.Dataset, pictures: PictureFolder, on_missing: str) -> datasets.Dataset:
    """`table` with a column "image" of the pictures that its column "file_name" names, kept as paths.

    Raises:
        MissingPicturesError: some are not there and on_missing is "error"; with "skip" their rows are left out.
        ReferringDataError: a name leads out of the folder.
    """
    names = table.data.column("file_name").to_pylist()
    paths = pictures.find_all(names, on_missing)
    images = [{"path": paths.get(name), "bytes": None} for name in names]
    table = table.add_column("image", images, feature=datasets.Image())
    there = [number for number, name in enumerate(names) if name in paths]
    return table if len(there) == len(names) else table.select(there)
