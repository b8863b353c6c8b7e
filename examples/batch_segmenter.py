"""A batch of rows with images and expressions in, a row with a mask for each expression out: for any engine.

`ReferringSegmenter` knows no framework. It pickles as a few strings and loads its model where it is first called, so
whatever hands out batches may call it: examples/infer.py, multiprocessing, or Ray Data, whose adapter is this:

    import ray
    from m3dec.examples.batch_segmenter import ReferringSegmenter

    class OnTables(ReferringSegmenter):  # typed, so that a batch without errors has the schema of one with some
        def __call__(self, batch):
            return self.answer_table(batch)

    settings = {"model": "path/to/model", "text_column": "sentences"}
    rows = ray.data.read_parquet("prepared/data/", columns=["ref_id", "image", "sentences"])
    answers = rows.map_batches(
        OnTables, fn_constructor_kwargs=settings, batch_format="pyarrow", batch_size=8, concurrency=2, num_cpus=1
    )  # num_gpus=1 where each has one
    answers.write_parquet("answers")
"""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import text_field
from m3dec.processing.images import rgb_array
from m3dec.processing.processing_m3dec import no_word_in
from m3dec.processing.referring_data.readers.images import ImageFolder
from m3dec.processing.referring_data.schema import ReferringDataError, encode_mask
from m3dec.processing.segmenter import Segmenter

RESULT_SCHEMA = pa.schema(
    {
        "expression_index": pa.int32(),  # its place among the expressions of its row, from 0 on
        "expression": pa.string(),
        "size": pa.list_(pa.int32()),  # height, width of the image as it is displayed
        "counts": pa.string(),  # COCO's compressed run lengths
        "score": pa.float32(),  # the mean probability inside the mask, 0.0 where it is empty
        "area": pa.int64(),  # pixels
        "error": pa.string(),  # null where there is a mask; else its name, a colon, and what is wrong
    }
)


class ReferringSegmenter:
    """Answers batches of rows; each image of a batch is encoded once for all that is asked about it.

    Args:
        model: a folder or hub name with the model and its processor.
        threshold: a pixel belongs to the object where its probability is above this, between 0 and 1.
        device: where the model runs; None for a GPU where there is one.
        image_root: the folder of images that are given by path. Without it, images must come as bytes.
        image_column, text_column: which columns hold the image and the expressions.
    """

    def __init__(
        self,
        model: str | Path,
        threshold: float = 0.5,
        device: str | None = None,
        image_root: str | Path | None = None,
        image_column: str = "image",
        text_column: str = "text",
    ):
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is a probability between 0 and 1, but it is {threshold}. The usual is 0.5.")
        self.model, self.threshold, self.device, self.image_root = str(model), threshold, device, image_root
        self.image_column, self.text_column = image_column, text_column
        self._loaded = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_loaded": None}

    def __call__(self, batch: dict) -> dict[str, list]:
        """See `answer`."""
        return self.answer(batch)

    def answer_table(self, table: pa.Table | pa.RecordBatch) -> pa.Table:
        """As `answer`, from Arrow to Arrow: other columns keep their types, the results have `RESULT_SCHEMA`'s."""
        others = [field for field in table.schema if field.name not in (self.image_column, self.text_column)]
        # Not by a call: Ray replaces __call__ by one that waits for its turn, and this is called inside of it.
        return pa.table(self.answer(table.to_pydict()), schema=pa.schema([*others, *RESULT_SCHEMA]))

    @torch.inference_mode()
    def answer(self, batch: dict) -> dict[str, list]:
        """Answer a batch, given as columns of equal lengths.

        Args:
            batch: the image of each row (encoded bytes, {"bytes", "path"}, a path below `image_root`, a PIL image or
                a uint8 array), its expressions (a string, a list of them, or a list of `sentences` as prepared shards
                have it), and whatever else is to stand beside the answers.

        Returns:
            Columns with an entry for each expression, in order: what else the batch holds, and those of
            `RESULT_SCHEMA`. An image that cannot be read or an expression without a word has an `error` and no mask.

        Raises:
            ValueError: a column is missing, or the batch has one that is named as a result.
        """
        self._check(batch)
        segmenter, folder = self._load()
        images, answers = _Images(folder), []
        for row, (image, cell) in enumerate(zip(batch[self.image_column], batch[self.text_column], strict=True)):
            number, error = images.add(image)
            for index, expression in enumerate(expressions_of(cell, text_field(segmenter.model.config))):
                answer = dict.fromkeys(RESULT_SCHEMA.names) | {"row": row, "image": number, "expression_index": index}
                answer["error"] = error or error_of(expression, segmenter.processor)
                if isinstance(expression, str):
                    answer["expression"] = expression.encode("utf-8", "replace").decode()  # no halves of letters
                answers.append(answer)
        asked = [answer for answer in answers if answer["error"] is None]
        if asked:
            expressions, numbers = [answer["expression"] for answer in asked], [answer["image"] for answer in asked]
            found = segmenter(images.arrays, expressions, numbers, self.threshold)
            for answer, one in zip(asked, found, strict=True):
                answer.update(encode_mask(one["mask"]), score=one["score"], area=int(one["mask"].sum()))
        others = [name for name in batch if name not in (self.image_column, self.text_column)]
        columns = {name: [batch[name][answer["row"]] for answer in answers] for name in others}
        return columns | {name: [answer[name] for answer in answers] for name in RESULT_SCHEMA.names}

    def _load(self) -> tuple[Segmenter, ImageFolder | None]:
        if self._loaded is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            model = M3DecForImageSegmentation.from_pretrained(self.model).to(device).eval()
            segmenter = Segmenter(model, M3DecProcessor.from_pretrained(self.model))
            self._loaded = segmenter, None if self.image_root is None else ImageFolder(self.image_root)
        return self._loaded

    def _check(self, batch: dict) -> None:
        for name in (self.image_column, self.text_column):
            if name not in batch:
                raise ValueError(
                    f"A batch has a column of images and one of expressions, but {name!r} is not among its columns: "
                    f"{', '.join(batch)}. Say image_column=… and text_column=…."
                )
        taken = set(RESULT_SCHEMA.names) & (set(batch) - {self.image_column, self.text_column})
        if taken:
            raise ValueError(
                f"The results are columns of these names: {', '.join(RESULT_SCHEMA.names)}, but the batch has "
                f"{', '.join(sorted(taken))} already. Rename or drop it."
            )


class _Images:
    """The images of a batch that can be read, each once though several rows have it."""

    def __init__(self, folder: ImageFolder | None):
        self.folder, self.arrays, self._seen = folder, [], {}

    def add(self, image) -> tuple[int | None, str | None]:
        """The number of the image among `arrays`; or why it has none."""
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        image = os.fspath(image) if isinstance(image, os.PathLike) else image
        key = image if isinstance(image, str | bytes) else len(self._seen)  # arrays are not compared
        if key not in self._seen:
            try:
                self.arrays.append(self._read(image))
                self._seen[key] = len(self.arrays) - 1, None
            except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
                self._seen[key] = None, named(error)
        return self._seen[key]

    def _read(self, image) -> np.ndarray:
        if isinstance(image, str):
            path = None if self.folder is None else self.folder.find(image)
            if path is None:
                raise FileNotFoundError(f"{image!r} is not in image_root, the folder of images that are given by path")
            image = Path(path).read_bytes()
        return rgb_array(Image.open(BytesIO(image)) if isinstance(image, bytes) else image)


def named(error: Exception) -> str:
    """An error's name and what it says, without what differs from one machine to another."""
    if isinstance(error, FileNotFoundError):
        return f"missing image: {error}"
    if isinstance(error, ReferringDataError):
        return "unsafe name: an image is named by a path below image_root, without '..', '\\', ':' and links out of it"
    if isinstance(error, UnidentifiedImageError):  # it tells an address in memory
        return "unreadable image: its bytes are of no kind that Pillow knows"
    return f"unreadable image: {getattr(error, 'strerror', None) or error}"


def expressions_of(cell, sentence_field: str) -> list:
    """The expressions of one row, whatever its cell holds; where it holds none, a None in their place."""
    several = [cell] if cell is None or isinstance(cell, str | dict) else list(cell)
    return [one.get(sentence_field) if isinstance(one, dict) else one for one in several] or [None]


def error_of(expression, processor: M3DecProcessor) -> str | None:
    """Why `expression` cannot be asked; None where it can."""
    if not isinstance(expression, str):
        return f"no expression: an expression is a text, but here is {expression!r:.80}"
    return None if processor.holds_word(expression) else f"no word: {no_word_in(expression)}"
