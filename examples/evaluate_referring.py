"""Both IoUs and Pr@X of a model folder on a referring data set, over all and by kind of expression.

    python examples/evaluate_referring.py --model hub/checkpoints/m3dec-scenes --data_root outputs/data \\
        --dataset scenes --split_by scenes --split test

Every sentence of the split counts once, at each image's own size; each image is encoded once for all its sentences.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import HfArgumentParser

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.data_arguments import DataArguments
from m3dec.processing.referring_data.sampling import references_by_image, usable_sentences
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.referring_iou import ReferringIoU, bootstrap_intervals, intersection_and_union

EXPRESSIONS_AT_ONCE = 32  # in the mask decoder, where each takes some 100 MB at the paper's size


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "A folder or hub name with the model and its processor."})
    split: str = field(default="val", metadata={"help": "val, test, testA, …"})
    threshold: float = field(default=0.5, metadata={"help": "Of the probability; VLT reported at 0.35."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Images at once; each with all its sentences."}
    )
    confidence: float | None = field(
        default=None, metadata={"help": "Also give intervals, such as 0.95, by a bootstrap over images."}
    )
    json: str | None = field(default=None, metadata={"help": "Also write the figures to this file."})


def main():
    data, arguments = HfArgumentParser((DataArguments, EvaluationArguments)).parse_args_into_dataclasses()
    if arguments.confidence is not None and not 0 < arguments.confidence < 1:
        raise SystemExit(f"--confidence is between 0 and 1, such as 0.95, but it is {arguments.confidence}.")
    accelerator = Accelerator()
    with accelerator.main_process_first():
        splits = data.load()
    if arguments.split not in splits:
        raise SystemExit(f"There is no split {arguments.split!r}. The splits of this data set are {', '.join(splits)}.")
    model = M3DecForImageSegmentation.from_pretrained(arguments.model).to(accelerator.device)
    processor = M3DecProcessor.from_pretrained(arguments.model)
    rows = evaluate(
        model,
        processor,
        splits[arguments.split],
        accelerator,
        arguments.per_device_eval_batch_size,
        arguments.threshold,
    )
    if accelerator.is_main_process:
        figures = by_kind(rows)
        print(f"{data.describe()} {arguments.split}, threshold {arguments.threshold}, original size, every sentence")
        print(table(figures))
        if arguments.confidence:
            pairs, image_ids = [[row.intersection, row.union] for row in rows], [row.image_id for row in rows]
            figures["intervals"] = bootstrap_intervals(pairs, image_ids, arguments.confidence)
            for name, (low, high) in figures["intervals"].items():
                print(f"{name}: {100 * low:.2f} to {100 * high:.2f} in {arguments.confidence:.0%} of resampled sets")
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump(figures, file, indent=2)


@dataclass
class ExpressionResult:
    """One sentence's outcome, in pixels of the original image."""

    image_id: int
    ref_id: int
    sent_id: int
    category: str | None
    intersection: int
    union: int
    predicted: int
    target: int


@torch.inference_mode()
def evaluate(
    model: M3DecForImageSegmentation,
    processor: M3DecProcessor,
    dataset: datasets.Dataset,
    accelerator: Accelerator,
    images_at_once: int = 8,
    threshold: float = 0.5,
) -> list[ExpressionResult]:
    """Ask `model` every sentence of `dataset` (rows of `REFERRING_FEATURES`), each image encoded once.

    Images are dealt out to the processes without padding and the results gathered as integers, so any number of
    processes gives the same rows, in the order of (ref_id, sent_id). A sentence without a word is not asked; it counts
    as answered with nothing.
    """
    model.eval()
    field_of_text = text_field(model.config)
    usable = usable_sentences(dataset, field_of_text, processor.holds_word)
    pictures, references = dataset.select_columns("image"), dataset.remove_columns("image")
    results = []
    images = list(references_by_image(dataset).values())[accelerator.process_index :: accelerator.num_processes]
    for numbers in images:
        for number in numbers:
            results += unanswered(references[number], usable[number])
    images = [numbers for numbers in images if any(usable[number] for number in numbers)]
    batches = range(0, len(images), images_at_once)
    for start in tqdm(batches, desc="evaluating", unit="batch", disable=not accelerator.is_local_main_process):
        batch = images[start : start + images_at_once]
        groups = [[(references[number], usable[number]) for number in numbers] for numbers in batch]
        asked = [[(row, row["sentences"][place]) for row, places in rows for place in places] for rows in groups]
        inputs = processor(
            images=[pictures[numbers[0]]["image"] for numbers in batch],
            text=[[sentence[field_of_text] for _, sentence in pairs] for pairs in asked],
        ).to(accelerator.device)
        image_index = torch.tensor([i for i, pairs in enumerate(asked) for _ in pairs], device=accelerator.device)
        with accelerator.autocast():
            features = model.get_image_features(inputs["pixel_values"])
            parts = zip(
                inputs["input_ids"].split(EXPRESSIONS_AT_ONCE),
                inputs["attention_mask"].split(EXPRESSIONS_AT_ONCE),
                image_index.split(EXPRESSIONS_AT_ONCE),
                strict=True,
            )
            logits = [model(None, ids, mask, index, image_features=features).logits for ids, mask, index in parts]
        pairs = [pair for group in asked for pair in group]
        sizes = [(row["height"], row["width"]) for row, _ in pairs]
        answers = processor.post_process_referring_segmentation(torch.cat(logits), sizes, threshold)
        for (row, sentence), answer in zip(pairs, answers, strict=True):
            results.append(result_of(row, sentence, answer["mask"]))
    return sorted(gather_object(results), key=lambda result: (result.ref_id, result.sent_id))


def unanswered(row: dict, usable: list[int]) -> list[ExpressionResult]:
    """The results of those sentences of a reference that cannot be asked."""
    nothing = np.zeros((row["height"], row["width"]), dtype=bool)
    return [result_of(row, sentence, nothing) for place, sentence in enumerate(row["sentences"]) if place not in usable]


def result_of(row: dict, sentence: dict, answer: np.ndarray) -> ExpressionResult:
    """What `answer`, a bool mask (height, width), is worth for one sentence of a reference."""
    truth = decode_mask(row["mask"])
    overlap = intersection_and_union(answer, truth)
    areas = int(np.count_nonzero(answer)), int(np.count_nonzero(truth))
    return ExpressionResult(row["image_id"], row["ref_id"], sentence["sent_id"], sentence["category"], *overlap, *areas)


def text_field(config) -> str:
    """Which form of a sentence the field feeds: `sent` to word vectors (as VLT), `raw` to BERT (as LAVT)."""
    return "sent" if config.text_config is None else "raw"


def by_kind(results: list[ExpressionResult]) -> dict[str, dict[str, float]]:
    """The metric over all results under "all", then under each category there is."""
    total, scores = ReferringIoU(), defaultdict(ReferringIoU)
    for result in results:
        pair, areas = [[result.intersection, result.union]], [[result.predicted, result.target]]
        total.update_pairs(pair, areas)
        if result.category is not None:
            scores[result.category].update_pairs(pair, areas)
    figures = {"all": total.compute()}
    return figures | {kind if kind != "all" else "kind 'all'": scores[kind].compute() for kind in sorted(scores)}


def table(figures: dict[str, dict[str, float]]) -> str:
    """`by_kind`'s figures as lines of text, IoUs and precisions in percent."""
    names = [name for name in next(iter(figures.values())) if name != "count"]  # "all" has every one there is
    width = max(12, *map(len, figures)) + 1
    lines = [" " * width + "".join(f"{name:>8}" for name in names) + f"{'count':>8}"]
    for kind, values in figures.items():
        lines.append(
            f"{kind:{width}}"
            + "".join(f"{100 * values.get(name, math.nan):8.2f}" for name in names)
            + f"{values['count']:8d}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
