"""A model's answers to the expressions of a split, a row each: in memory, and in a Parquet file."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m3dec.processing.referring_data.schema import decode_mask


@dataclass
class ExpressionResult:
    """The answer to one expression and its truth, counted in pixels of the original image."""

    image_id: int
    file_name: str
    ref_id: int
    sent_id: int
    expression: str  # as it was asked
    words: int
    category: str | None
    height: int
    width: int
    intersection: int
    union: int
    predicted: int
    target: int
    score: float  # the mean probability inside the answer, 0.0 where it is empty
    peak_in_target: bool  # whether the highest logit lies in the target
    # The chance that a model which ignores the words has this peak in its target: the share of the image's distinct
    # targets that hold it. None where the image has one target only, the target is empty or nothing was asked.
    blind_chance: float | None = None
    predicted_mask: str | None = None  # `counts` of COCO's run lengths, where they are kept

    @property
    def image_key(self) -> tuple[int, str]:
        """Which image it is about. The file's name is part of it, because a mixture of data sets repeats numbers."""
        return self.image_id, self.file_name

    @property
    def ids(self) -> tuple:
        """Which expression it is. Results are in this order."""
        return self.ref_id, self.sent_id, self.image_id, self.file_name

    @property
    def iou(self) -> float:
        """1.0 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0

    @property
    def solved(self) -> bool:
        """Whether the IoU is above 0.5. In integers, as Pr@0.5 counts it."""
        return 2 * self.intersection > self.union or self.union == 0

    def answer(self) -> np.ndarray:
        """The predicted mask, bool (height, width)."""
        return decode_mask({"size": (self.height, self.width), "counts": self.predicted_mask})


@dataclass
class Answers:
    """All results of one model on one split, and how they were made."""

    model: str
    data: str
    split: str
    threshold: float
    results: list[ExpressionResult]

    @property
    def heading(self) -> str:
        """The line above the tables: data, split and protocol."""
        return f"{self.data} {self.split}, threshold {self.threshold}, original size, every sentence"


ARROW_TYPES = {
    int: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    float | None: pa.float64(),
    str: pa.string(),
    str | None: pa.string(),
}
SHORT = ("words", "height", "width")  # columns of 32 bits
COLUMNS = pa.schema(
    (one.name, pa.int32() if one.name in SHORT else ARROW_TYPES[one.type]) for one in fields(ExpressionResult)
)
COLUMNS = COLUMNS.insert(COLUMNS.get_field_index("score"), pa.field("iou", pa.float64()))
PROTOCOL = b"m3dec_evaluation"  # the key of the file's metadata; its value is JSON: model, data, split and threshold


def write_rows(path: str | Path, answers: Answers) -> None:
    """Write a row of `COLUMNS` per expression. The file is put in its place when it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = {name: getattr(answers, name) for name in ("model", "data", "split", "threshold")}
    schema = COLUMNS.with_metadata({PROTOCOL: json.dumps(protocol)})
    rows = [asdict(result) | {"iou": result.iou} for result in answers.results]
    partial = path.with_name(f"{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    os.replace(partial, path)


def read_rows(path: str | Path) -> Answers:
    """Read what `write_rows` wrote.

    Raises:
        OSError: there is no such file.
        ValueError: it is no Parquet file, or not one of `write_rows`.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"The rows of a run are a Parquet file, but {path} is not readable as one: {error}") from error
    missing = set(COLUMNS.names) - set(table.column_names)
    if missing or PROTOCOL not in (table.schema.metadata or {}):
        raise ValueError(
            f"The rows of a run are a file that evaluate_referring.py wrote, but {path} lacks "
            f"{', '.join(sorted(missing)) or 'how they were made'}. Write it with --model MODEL --rows {path}."
        )
    rows = table.select([field.name for field in fields(ExpressionResult)]).to_pylist()
    results = sorted((ExpressionResult(**row) for row in rows), key=lambda result: result.ids)
    return Answers(**json.loads(table.schema.metadata[PROTOCOL]), results=results)


def check_comparable(first: Answers, second: Answers) -> None:
    """Raise a ValueError where two runs differ in their threshold, their expressions, or a target's size or kind."""
    if first.threshold != second.threshold:
        raise ValueError(
            f"Two models are compared at one threshold, but {first.model} answered at {first.threshold} and "
            f"{second.model} at {second.threshold}. Evaluate one of them again with the other's --threshold."
        )
    areas, others = ({one.ids: (one.target, one.category) for one in run.results} for run in (first, second))
    if areas.keys() != others.keys():
        raise ValueError(
            f"Two models are compared on the same expressions, but {first.model} answered {len(areas)} of "
            f"{first.data} {first.split} and {second.model} {len(others)} of {second.data} {second.split}, and "
            f"{len(areas.keys() & others.keys())} are the same. Evaluate both on one split of one data set."
        )
    changed = [ids for ids, area in areas.items() if others[ids] != area]
    if changed:
        ref_id, sent_id, *_ = changed[0]
        (pixels, kind), (other_pixels, other_kind) = areas[changed[0]], others[changed[0]]
        raise ValueError(
            f"Two models are compared on the same targets, but {len(changed)} of {len(areas)} differ, such as that of "
            f"sentence {sent_id} of reference {ref_id}: {pixels} pixels, {kind}, for {first.model}, {other_pixels}, "
            f"{other_kind}, for {second.model}. The data have changed in between: evaluate both again."
        )


def image_numbers(results: list[ExpressionResult]) -> list[int]:
    """For each result the number of its image, for a bootstrap over images."""
    numbers = {key: number for number, key in enumerate(sorted({result.image_key for result in results}))}
    return [numbers[result.image_key] for result in results]
