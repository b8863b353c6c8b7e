"""Masks for sets of images of any size: images or Parquet in, Parquet out, in parts that a stopped run goes on with.

    python examples/infer.py --model path/to/model --input photos --expressions "the red mug" "the cup" --output masks
    python examples/infer.py --model path/to/model --input photos --expressions_file asked.csv --output masks
    torchrun --nproc_per_node 8 examples/infer.py --model path/to/model --input prepared/data --output masks

Writes output/part-00012-of-00040.parquet and so on: a row for each expression, with the columns that tell the rows of
the input apart and those of `RESULT_SCHEMA` in batch_segmenter.py; `decode_mask` of m3dec.processing.referring_data
makes a mask of `size` and `counts`. An image that cannot be read, or an expression without a word, is a row with an
`error`.

A part appears under its name only when it is whole. Run again, the program does the parts that are not there, and
refuses to mix them with those of another model, threshold or input (told by names and sizes). Process R of W does every
W-th part, by --rank and --world_size or as torchrun says; machines need the same input and one output folder, and no
other connection. Another kind of device, batch size or number of threads may move a pixel that lies at the threshold.
"""

import hashlib
import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import torch
from huggingface_hub import snapshot_download
from tqdm import tqdm
from transformers import HfArgumentParser

from m3dec.examples.batch_segmenter import RESULT_SCHEMA, ReferringSegmenter
from m3dec.examples.user_errors import exits_with_message
from m3dec.processing.referring_data import ReferringDataError

MANIFEST = "_infer.json"  # what reads a folder of Parquet files leaves out names that begin so
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass
class InferenceArguments:
    model: str = field(metadata={"help": "A folder or hub name with the model and its processor."})
    input: list[str] = field(metadata={"help": "A folder of images, or Parquet files, or a folder of them."})
    output: str = field(metadata={"help": "The folder of the parts; may hold some of them, which are kept."})
    expressions: list[str] | None = field(default=None, metadata={"help": "Asked of every image."})
    expressions_file: str | None = field(
        default=None,
        metadata={"help": "For a folder of images: .csv or .jsonl with `image`, a name in it, and `expression`."},
    )
    image_column: str = field(default="image", metadata={"help": "Of Parquet: bytes, {bytes, path} or a path."})
    text_column: str = field(
        default="sentences", metadata={"help": "Of Parquet: an expression, a list of them, or prepared `sentences`."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Of Parquet with paths: the folder they are in."})
    id_columns: list[str] | None = field(
        default=None, metadata={"help": "Of Parquet: what to keep beside the answers; by default numbers and texts."}
    )
    threshold: float = field(default=0.5, metadata={"help": "Of the probability; VLT reported at 0.35."})
    shard_size: int = field(default=256, metadata={"help": "Rows of the input, or images, that make a part."})
    batch_size: int = field(default=8, metadata={"help": "Of them at once; each with all its expressions."})
    device: str | None = field(default=None, metadata={"help": "By default a GPU where there is one."})
    rank: int = field(
        default=int(os.environ.get("RANK", 0)), metadata={"help": "Which of the processes this is, from 0 on."}
    )
    world_size: int = field(
        default=int(os.environ.get("WORLD_SIZE", 1)), metadata={"help": "How many processes share the parts."}
    )


@exits_with_message
def main(command_line: list[str] | None = None):
    (arguments,) = HfArgumentParser(InferenceArguments).parse_args_into_dataclasses(command_line)
    try:
        infer(arguments)
    except (ReferringDataError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error


def infer(arguments: InferenceArguments) -> None:
    """Write those parts of the output that are this process's and are not there yet.

    Raises:
        ReferringDataError: the input or the arguments are not right, or the output folder holds something else.
        FileNotFoundError: an input or the model is not there.
    """
    check(arguments)
    source = open_input(arguments)
    shards = source.shards(arguments.shard_size)
    model = folder_of_model(arguments.model)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    check_run(output, manifest_of(arguments, model, source, shards))

    paths = [output / f"part-{number:05d}-of-{len(shards):05d}.parquet" for number in range(len(shards))]
    mine = list(zip(paths, shards, strict=True))[arguments.rank :: arguments.world_size]
    segmenter = ReferringSegmenter(
        model, arguments.threshold, device_of(arguments), source.image_root, source.image_column, source.text_column
    )
    total = sum(shard.stop - shard.start for _, shard in mine)
    with tqdm(total=total, desc=f"process {arguments.rank} of {arguments.world_size}", unit="row") as progress:
        for path, shard in mine:
            if not path.exists():
                write_part(path, source, shard, segmenter, arguments.batch_size, progress)
            else:
                progress.update(shard.stop - shard.start)
    errors = [pq.read_table(path, columns=["error"])["error"] for path, _ in mine]
    rows, wrong = sum(map(len, errors)), sum(len(column) - column.null_count for column in errors)
    print(f"{len(mine)} of {len(paths)} parts are done, with {rows} rows, {wrong} of them with an error: {output}")


def check(arguments: InferenceArguments) -> None:
    """Refuse arguments that cannot be right."""
    if not 0 <= arguments.rank < arguments.world_size:
        raise ReferringDataError(
            f"--rank is from 0 to --world_size - 1, but they are {arguments.rank} and {arguments.world_size}."
        )
    if not 0 < arguments.threshold < 1:
        raise ReferringDataError(f"--threshold is between 0 and 1, such as 0.5, but it is {arguments.threshold}.")
    for name in ("shard_size", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ReferringDataError(f"--{name} is at least 1, but it is {getattr(arguments, name)}.")
    for name in arguments.input:
        if Path(arguments.output).resolve().is_relative_to(Path(name).resolve()):
            raise ReferringDataError(f"The output is beside the input, but {arguments.output} is in {name}.")
    if arguments.expressions and arguments.expressions_file:
        raise ReferringDataError("Expressions come by --expressions or by --expressions_file, but both are given.")


# The output


def write_part(path: Path, source, shard: "Shard", segmenter, batch_size: int, progress: tqdm) -> None:
    """Answer one shard and write it, under its name when it is whole and on the disk."""
    tables = []
    for batch in source.batches(shard, batch_size):
        tables.append(segmenter.answer_table(batch))
        progress.update(len(batch))
    # A name of its own: a process that was given up may be at the same part still.
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}.tmp")
    with temporary.open("wb") as file:
        pq.write_table(pa.concat_tables(tables), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    try:
        temporary.replace(path)
    except FileNotFoundError:
        if not path.exists():  # where it does, that process was done with it first, and cleared ours away
            raise
    for left in path.parent.glob(f".{path.stem}-*.tmp"):  # by a process that was killed
        left.unlink(missing_ok=True)


def manifest_of(arguments: InferenceArguments, model: Path, source, shards: list["Shard"]) -> dict:
    """All that the answers depend on."""
    weights = [path for path in sorted(model.iterdir()) if path.suffix in (".safetensors", ".bin", ".json", ".txt")]
    return {
        "model": sha256(path.read_bytes() for path in weights),
        "threshold": arguments.threshold,
        "expressions": arguments.expressions,
        "input": source.digest(),
        "image_root": arguments.image_root,
        "columns": [source.image_column, source.text_column, *source.schema.names],
        "shard_size": arguments.shard_size,
        "parts": len(shards),
        "rows": sum(shard.stop - shard.start for shard in shards),
    }


def check_run(output: Path, manifest: dict) -> None:
    """Write the manifest, or find the same one.

    Raises:
        ReferringDataError: the folder is that of another run.
    """
    path = output / MANIFEST
    if not path.exists():
        if any(output.glob("part-*.parquet")):
            raise ReferringDataError(f"{output} has parts without a {MANIFEST}. Choose another folder, or delete them.")
        temporary = path.with_name(f"{MANIFEST}-{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        temporary.replace(path)
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} is {manifest.get(name)!r:.80} and was {before.get(name)!r:.80}"
        for name in {**before, **manifest}
        if before.get(name) != manifest.get(name)
    ]
    if changed:
        raise ReferringDataError(
            f"{output} is of one model, input and settings, but now {'; '.join(changed)}. Choose another folder."
        )


def sha256(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def folder_of_model(name: str) -> Path:
    """The folder of a model on this machine; one of a hub is fetched."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name))
    except Exception as error:  # no connection, no such name, no right to it
        raise FileNotFoundError(
            f"--model is a folder or a hub name, but {name} is no folder, and the hub: {error}"
        ) from error


def device_of(arguments: InferenceArguments) -> str | None:
    """The device of this process; as torchrun numbers those of a machine, where it does."""
    if arguments.device is None and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return arguments.device


# The input


class Shard(NamedTuple):
    """The rows of one part of the output, all of one file of the input."""

    file: int
    start: int
    stop: int


def open_input(arguments: InferenceArguments) -> "ImageFolderInput | ParquetFiles":
    """What --input names, in an order that depends on names alone."""
    paths = [Path(name) for name in arguments.input]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"--input is a folder of images or Parquet files, but {path} is not there.")
    names = {path: files_below(path) if path.is_dir() else [path.name] for path in paths}
    roots = {path: path if path.is_dir() else path.parent for path in paths}
    found = sorted({(name, roots[path]) for path in paths for name in names[path]})
    tables = [(name, root / name) for name, root in found if name.lower().endswith(".parquet")]
    twice = sorted({one for (one, _), (other, _) in pairwise(found) if one == other})
    if twice:
        raise ReferringDataError(f"Rows are told apart by their file's name, but --input has two of {twice[0]}.")
    images = [name for name, _ in found if name.lower().endswith(IMAGE_ENDINGS)]
    if tables and not images:
        return ParquetFiles(tables, arguments)
    if images and not tables and len(paths) == 1 and paths[0].is_dir():
        return ImageFolderInput(paths[0], images, arguments)
    raise ReferringDataError(
        f"--input is one folder of images ({', '.join(IMAGE_ENDINGS)}), or Parquet files, but in "
        f"{', '.join(arguments.input)} there are {len(images)} images and {len(tables)} Parquet files."
    )


def files_below(folder: Path) -> list[str]:
    """The names of all files, relative to `folder` and with slashes."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


class ImageFolderInput:
    """A folder of images, in which all are asked the same, or each what a file says."""

    image_column, text_column, schema = "image", "text", pa.schema({"file_name": pa.string()})

    def __init__(self, folder: Path, names: list[str], arguments: InferenceArguments):
        self.image_root = folder
        if arguments.expressions:
            self.asked = dict.fromkeys(names, arguments.expressions)
        elif arguments.expressions_file:
            self.asked = read_expressions(Path(arguments.expressions_file))
        else:
            raise ReferringDataError("Images are asked something: pass --expressions or --expressions_file.")
        self.names = sorted(self.asked)
        if unwritable := [name for name in self.names if name != name.encode("utf-8", "replace").decode()]:
            raise ReferringDataError(f"File names are in UTF-8, but {unwritable[0]!r} is not. Rename it.")

    def digest(self) -> str:
        sizes = [path.stat().st_size if path.is_file() else None for path in map(self.image_root.joinpath, self.names)]
        asked = [self.asked[name] for name in self.names]
        return sha256([json.dumps([self.names, sizes, asked]).encode()])

    def shards(self, size: int) -> list[Shard]:
        return [Shard(0, *ends) for ends in pairwise([*range(0, len(self.names), size), len(self.names)])]

    def batches(self, shard: Shard, size: int) -> Iterator[pa.Table]:
        for start in range(shard.start, shard.stop, size):
            names = self.names[start : min(start + size, shard.stop)]
            yield pa.table({"file_name": names, "image": names, "text": [self.asked[name] for name in names]})


def read_expressions(path: Path) -> dict[str, list[str]]:
    """The expressions of each image, from the columns `image` and `expression` of a .csv or .jsonl file."""
    schema = pa.schema({"image": pa.string(), "expression": pa.string()})
    try:
        if path.suffix.lower() == ".csv":
            convert = pa.csv.ConvertOptions(column_types=schema, include_columns=schema.names)
            parse = pa.csv.ParseOptions(newlines_in_values=True)
            table = pa.csv.read_csv(path, parse_options=parse, convert_options=convert)
        elif path.suffix.lower() == ".jsonl":
            parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            table = pa.json.read_json(path, parse_options=parse)
        else:
            raise ReferringDataError(f"--expressions_file is a .csv or .jsonl file, but it is {path}.")
    except (pa.ArrowException, KeyError) as error:
        raise ReferringDataError(
            f"--expressions_file has the columns `image` and `expression` in UTF-8, but {path} has not: {error}"
        ) from error
    asked = defaultdict(list)
    for row in table.to_pylist():
        asked[row["image"]].append(row["expression"])
    if None in asked or not asked:
        raise ReferringDataError(f"Every row of --expressions_file names its `image`, but {path} has some without.")
    return dict(asked)


class ParquetFiles:
    """Parquet files with an image and its expressions in each row, as 🤗 Datasets and prepare_data.py write them."""

    def __init__(self, files: list[tuple[str, Path]], arguments: InferenceArguments):
        self.image_root, self.expressions = arguments.image_root, arguments.expressions
        self.image_column, self.text_column = arguments.image_column, arguments.text_column
        self.names, self.paths = zip(*files, strict=True)
        try:
            self.footers = [pq.read_metadata(path) for path in self.paths]
        except pa.ArrowException as error:
            raise ReferringDataError(f"A file of --input is no whole Parquet file: {error}") from error
        if arguments.expressions_file:
            raise ReferringDataError("--expressions_file is for a folder of images, but --input is Parquet.")
        if not sum(footer.num_rows for footer in self.footers):
            raise ReferringDataError(f"There are no rows in {', '.join(arguments.input)}.")
        self.schema = self._ids(self.footers[0].schema.to_arrow_schema(), arguments.id_columns)
        for name, footer in zip(self.names, self.footers, strict=True):
            if self._ids(footer.schema.to_arrow_schema(), arguments.id_columns) != self.schema:
                raise ReferringDataError(f"All Parquet files have the same columns, but {name} has others.")

    def _ids(self, schema: pa.Schema, wanted: list[str] | None) -> pa.Schema:
        """The columns to keep, of one file's `schema`."""
        needed = [self.image_column, *([] if self.expressions else [self.text_column]), *(wanted or [])]
        if missing := [name for name in needed if name not in schema.names]:
            raise ReferringDataError(
                f"--input has no column {missing[0]!r}; there are {', '.join(schema.names)}. Pass --image_column, "
                "--text_column or --expressions, and --id_columns as they are called there."
            )
        if pa.types.is_string(schema.field(self.image_column).type) and self.image_root is None:
            raise ReferringDataError(
                f"Column {self.image_column!r} has images by their paths: pass --image_root, the folder they are in."
            )
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string)
        plain = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
        kept = [name for name in wanted or plain if name not in (self.image_column, self.text_column)]
        own = pa.schema({"file": pa.string(), "row": pa.int64()})
        if taken := set(kept) & {*own.names, *RESULT_SCHEMA.names}:
            raise ReferringDataError(
                f"The output has a column {min(taken)!r} of its own, and so has --input. Name others by --id_columns."
            )
        return pa.schema([*own, *(schema.field(name).remove_metadata() for name in kept)])

    def digest(self) -> str:
        sizes = [path.stat().st_size for path in self.paths]
        return sha256([json.dumps([self.names, sizes]).encode()])

    def shards(self, size: int) -> list[Shard]:
        return [
            Shard(number, start, min(start + size, footer.num_rows))
            for number, footer in enumerate(self.footers)
            for start in range(0, footer.num_rows, size)
        ]

    def batches(self, shard: Shard, size: int) -> Iterator[pa.Table]:
        """The rows of `shard`; of its file no more is read than the row groups that hold them."""
        footer = self.footers[shard.file]
        groups, first, row = [], None, 0
        for group in range(footer.num_row_groups):
            end = row + footer.row_group(group).num_rows
            if end > shard.start and row < shard.stop:
                groups.append(group)
                first = row if first is None else first
            row = end
        asked = [] if self.expressions else [self.text_column]
        columns = [self.image_column, *asked, *self.schema.names[2:]]
        row = first
        with pq.ParquetFile(self.paths[shard.file]) as file:
            for batch in file.iter_batches(size, row_groups=groups, columns=columns):
                low, high = max(shard.start - row, 0), min(shard.stop - row, len(batch))
                if low < high:
                    yield self._table(batch.slice(low, high - low), shard.file, row + low)
                row += len(batch)
                if row >= shard.stop:
                    return

    def _table(self, batch: pa.RecordBatch, file: int, row: int) -> pa.Table:
        """A batch with the columns of `schema` in their order, and what is asked."""
        own = {"file": [self.names[file]] * len(batch), "row": range(row, row + len(batch))}
        kept = {name: batch[name] for name in self.schema.names[2:]}
        asked = [self.expressions] * len(batch) if self.expressions else batch[self.text_column]
        return pa.table({**own, **kept, self.image_column: batch[self.image_column], self.text_column: asked})


if __name__ == "__main__":
    main()
