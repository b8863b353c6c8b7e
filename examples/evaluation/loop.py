"""Ask a model every expression of a split, on any number of processes, and count what each answer is worth."""

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.sampling import references_by_image, usable_sentences
from m3dec.processing.referring_data.schema import decode_mask, encode_mask
from m3dec.processing.referring_iou.score import pixel_counts
from m3dec.processing.segmenter import Segmenter

from .results import ExpressionResult

DEFAULT_THRESHOLD = 0.5


@torch.inference_mode()
def evaluate(
    model: M3DecForImageSegmentation,
    processor: M3DecProcessor,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    images_at_once: int = 8,
    threshold: float = DEFAULT_THRESHOLD,
    keep_masks: bool = False,
) -> list[ExpressionResult]:
    """Ask `model` every expression of `dataset` (rows of `REFERRING_FEATURES`), each image encoded once.

    Batches of images are made first and then dealt out to the processes, whole and without padding, and the results
    are gathered, never averages: any number of processes gives the same rows, in the order of (ref_id, sent_id). An
    expression without a word is not asked; it counts as answered with nothing. With `keep_masks` the results carry the
    answers' run lengths.

    Raises:
        ReferringDataError: an image is of another size than its masks.
    """
    segmenter = Segmenter(model.eval(), processor)
    form = text_field(model.config)
    usable = usable_sentences(dataset, form, processor.holds_word)
    image_column, references = dataset.select_columns("image"), dataset.remove_columns("image")
    images, results = list(references_by_image(dataset).values()), []
    if accelerator.is_main_process:
        results += unanswered(references, usable, form, keep_masks)
    images = [numbers for numbers in images if any(usable[number] for number in numbers)]
    batches = [images[start : start + images_at_once] for start in range(0, len(images), images_at_once)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    for batch in tqdm(batches, desc="evaluating", unit="batch", disable=not accelerator.is_local_main_process):
        rows = [{number: references[number] for number in numbers} for numbers in batch]
        asked = [
            [(row, row["sentences"][place]) for number, row in group.items() for place in usable[number]]
            for group in rows
        ]
        images_of_batch = [image_column[numbers[0]]["image"] for numbers in batch]
        for image, group in zip(images_of_batch, rows, strict=True):
            check_size(image, next(iter(group.values())))
        expressions = [sentence[form] for group in asked for _, sentence in group]
        image_index = [number for number, group in enumerate(asked) for _ in group]
        answers = segmenter(images_of_batch, expressions, image_index, threshold)
        with accelerator.autocast():
            for group, group_rows in zip(asked, rows, strict=True):
                targets = {row["mask"]["counts"]: decode_mask(row["mask"]) for row in group_rows.values()}
                results += [result_of(*pair, form, next(answers), targets, keep_masks) for pair in group]
    return sorted(gather_object(results), key=lambda result: result.ids)


def check_size(image: Image.Image, row: dict) -> None:
    if image.size != (row["width"], row["height"]):
        raise ReferringDataError(
            f"An image has the size of its masks, but {row['file_name']} is {image.size} and its masks are for "
            f"{(row['width'], row['height'])} (width, height). Is it another one of that name, or was it saved anew?"
        )


def unanswered(references: datasets.Dataset, usable: list[list[int]], form: str, keep_masks: bool) -> list:
    """The results of those expressions that cannot be asked."""
    results = []
    for number, places in enumerate(usable):
        row = references[number]
        silent = [sentence for place, sentence in enumerate(row["sentences"]) if place not in places]
        targets = {row["mask"]["counts"]: decode_mask(row["mask"])} if silent else {}
        nothing = {"mask": np.zeros((row["height"], row["width"]), dtype=bool), "score": 0.0, "peak": None}
        results += [result_of(row, sentence, form, nothing, targets, keep_masks) for sentence in silent]
    return results


def result_of(row: dict, sentence: dict, form: str, answer: dict, targets: dict, keep_masks: bool) -> ExpressionResult:
    """Measure `answer`, of the processor, against the truth of one sentence of a reference.

    `targets` are all that is meant in its image, {counts of the run lengths: bool mask (height, width)}.
    """
    truth, peak = targets[row["mask"]["counts"]], answer["peak"]
    intersection, union, predicted, target = pixel_counts(answer["mask"], truth)
    hit = [bool(mask[peak]) for mask in targets.values() if mask.any()] if peak is not None and target else []
    return ExpressionResult(
        image_id=row["image_id"],
        file_name=row["file_name"],
        ref_id=row["ref_id"],
        sent_id=sentence["sent_id"],
        expression=sentence[form],
        words=sum(any(map(str.isalnum, word)) for word in sentence[form].split()),
        category=sentence["category"],
        height=row["height"],
        width=row["width"],
        intersection=intersection,
        union=union,
        predicted=predicted,
        target=target,
        score=answer["score"],
        peak_in_target=peak is not None and bool(truth[peak]),
        blind_chance=sum(hit) / len(hit) if len(hit) > 1 else None,
        predicted_mask=encode_mask(answer["mask"])["counts"] if keep_masks else None,
    )


def text_field(config) -> str:
    """Which form of a sentence the model reads: `sent` with word vectors (as VLT), `raw` with BERT (as LAVT)."""
    return "sent" if config.text_config is None else "raw"
