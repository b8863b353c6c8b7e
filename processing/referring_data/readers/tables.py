"""From a reader's rows to tables on disk, made once and found again while the files they came from are the same."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError

from m3dec.processing.referring_data.schema import REFERRING_FEATURES, ReferringDataError

from .images import ImageFolder

logger = logging.getLogger(__name__)

# As the schema, with the split, and without the image: images are looked for at every loading.
_ROW_FEATURES = datasets.Features(
    {name: feature for name, feature in REFERRING_FEATURES.items() if name != "image"}
    | {"split": datasets.Value("string")}
)
# The code that makes rows: tables made by other code are made again. The scenes are in a folder of their own.
READERS = [path for folder in Path(__file__).parents[:2] for path in sorted(folder.glob("*.py"))]


def tables_by_split(
    rows: Callable[..., Iterator[dict]], settings: dict, files: list[Path], images: ImageFolder, on_missing: str
) -> datasets.DatasetDict:
    """One table per split of what `rows(**settings)` yields: rows of the schema without "image", and with "split".

    The rows are kept in the cache folder of 🤗 Datasets. They are made again when `files`, `settings` or the code of
    the readers differ. Images are looked for at every call, by each row's file_name, and kept as paths.

    Args:
        rows: yields the rows of one split one after the other.
        settings: what `rows` takes. Settings with the same repr count as the same.
        files: what `rows` reads.
        images: the folder of the images.
        on_missing: "error" or "skip", for images that are missing.

    Raises:
        MissingImagesError: an image is missing.
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
    table = with_images(table, images, on_missing, keep=["split"])
    # A split's rows are neighbours, so a slice needs no list of indices, which would slow every access down.
    runs = pc.run_end_encode(table.with_format("arrow")[:]["split"].combine_chunks())
    splits, start = {}, 0
    for name, stop in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        splits[name] = table.select(range(start, stop)).select_columns(list(REFERRING_FEATURES))
        start = stop
    return datasets.DatasetDict(splits)


def with_images(table: datasets.Dataset, images: ImageFolder, on_missing: str, keep: list[str]) -> datasets.Dataset:
    """The columns of the schema and `keep`, with the images that the column "file_name" names, kept as paths.

    Raises:
        MissingImagesError: images are missing and on_missing is "error"; with "skip" their rows are left out.
        ReferringDataError: a name leads out of the folder, or every image is missing.
    """
    names = table.data.column("file_name").to_pylist()
    paths = images.find_all(names, on_missing)
    if not paths:
        raise ReferringDataError(f"None of the images is in {images.root}. Pass another image_root.")
    column = [{"path": paths.get(name), "bytes": None} for name in names]
    table = table.add_column("image", column, feature=datasets.Image()).select_columns([*REFERRING_FEATURES, *keep])
    there = [number for number, name in enumerate(names) if name in paths]
    return table if len(there) == len(names) else table.select(there)


def with_images_inside(table: datasets.Dataset | datasets.IterableDataset, name: str):
    """`table`, checked to hold the bytes of its images: a path in data of others could name any file of this computer.

    Raises:
        ReferringDataError: an image is a path or empty; in a stream, when its row comes.
    """
    error = ReferringDataError(
        f"Prepared rows hold their images, but one of {name} is empty or names a file, and such a path may lead "
        "anywhere. Prepare the data again."
    )
    if isinstance(table, datasets.IterableDataset):
        rows = table.cast_column("image", datasets.Image(decode=False))
        rows = rows.map(_check_images_inside, batched=True, batch_size=16, fn_kwargs={"error": error})
        return rows.cast(table.features)
    if pc.struct_field(table.data.column("image"), "bytes").null_count:
        raise error
    return table


def _check_images_inside(batch: dict, error: ReferringDataError) -> dict:
    if any(image is None or image["bytes"] is None for image in batch["image"]):
        raise error
    return batch


def undecoded_images(table: datasets.Dataset) -> datasets.Dataset:
    """The column "image" alone, each {"bytes", "path"} as the table holds it."""
    return table.select_columns("image").cast_column("image", datasets.Image(decode=False))


def bytes_of(image: dict) -> bytes:
    """The file of an undecoded image."""
    return image["bytes"] or Path(image["path"]).read_bytes()


def image_ids(table: datasets.Dataset) -> set[int]:
    """The numbers of the images of a table."""
    return set(table.select_columns("image_id").with_format("arrow")[:]["image_id"].to_pylist())


def warn_of_shared_images(splits: datasets.DatasetDict, name: str) -> None:
    """Log a warning for each split that shares images with "train", as RefCOCOg's splits by Google do."""
    train = image_ids(splits["train"]) if "train" in splits else set()
    for split, table in splits.items():
        shared = image_ids(table) & train if split != "train" else ()
        if shared:
            logger.warning(
                f"{len(shared)} images of {name} {split} are in train as well: scores on them are not scores on unseen "
                "images."
            )


def digest_of(files: list[Path], text: str = "") -> str:
    """A hash of the files' bytes and of `text`, 32 hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for path in files:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
    return digest.hexdigest()[:32]
