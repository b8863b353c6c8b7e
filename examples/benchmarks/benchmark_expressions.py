"""What encoding an image once is worth, for one image with several expressions and for an evaluation.

    python examples/benchmarks/benchmark_expressions.py [--rounds 3] [--images 24] [--paper_images 2]

Prints times as ratios of minima measured in one run, for the paper's CNN model (random weights, 416 pixels) and the
shipped one: a call with eight expressions against eight calls with one; and `evaluate` of drawn scenes with seven
expressions each against one call per expression, pre- and post-processing and counting included, with what the two
ways' pixel counts differ by.
"""

import tempfile
import time
from argparse import ArgumentParser

import datasets
import torch
from accelerate import Accelerator

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import evaluate
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.referring_iou import intersection_and_union

EXPRESSIONS = 8
EXPRESSIONS_OF_A_SCENE = 7


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24, help="scenes to evaluate the shipped model on")
    parser.add_argument("--paper_images", type=int, default=2, help="scenes to evaluate the paper's model on")
    arguments = parser.parse_args()
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    paper = M3DecForImageSegmentation(M3DecConfig(vocab_size=len(processor.tokenizer))).eval()
    shipped = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT).eval()
    print(f"{torch.get_num_threads()} threads, float32, {EXPRESSIONS} expressions of 8 words about one image")
    compare("paper, Darknet-53, 416 px", paper, arguments.rounds)
    compare("shipped, drawn scenes", shipped, arguments.rounds)
    print(f"evaluation of drawn scenes, {EXPRESSIONS_OF_A_SCENE} expressions each")
    side = shipped.config.image_size
    compare_evaluation("shipped, drawn scenes", shipped, processor, scenes(arguments.images, side), arguments.rounds)
    side = paper.config.image_size
    processor.image_processor.size = {"height": side, "width": side}
    compare_evaluation("paper, Darknet-53, 416 px", paper, processor, scenes(arguments.paper_images, side), rounds=1)


@torch.inference_mode()
def compare(name: str, model: M3DecForImageSegmentation, rounds: int) -> None:
    size = model.config.image_size
    pixel_values = torch.randn(1, 3, size, size)
    input_ids = torch.randint(2, model.config.vocab_size, (EXPRESSIONS, 8))
    together, alone = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        model(pixel_values, input_ids)
        together.append(time.perf_counter() - start)
        start = time.perf_counter()
        for expression in input_ids:
            model(pixel_values, expression[None])
        alone.append(time.perf_counter() - start)
    print(
        f"{name}: {min(together):.3f} s together, {min(alone):.3f} s one by one, ratio {min(together) / min(alone):.2f}"
    )


def compare_evaluation(name: str, model, processor, dataset: datasets.Dataset, rounds: int) -> None:
    """Time both ways in turn, and tell by how many pixels their counts differ."""
    accelerator = Accelerator(cpu=True)
    together, alone = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        results = evaluate(model, processor, dataset, accelerator)
        together.append(time.perf_counter() - start)
        start = time.perf_counter()
        pairs = one_by_one(model, processor, dataset)
        alone.append(time.perf_counter() - start)
    pixels = [
        max(abs(result.intersection - intersection), abs(result.union - union))
        for result, (intersection, union) in zip(results, pairs, strict=True)
    ]
    answered = sum(result.predicted > 0 for result in results)  # random weights may answer with nothing
    print(
        f"{name}: {len(results)} expressions, {answered} answered with pixels, {min(together):.2f} s, "
        f"by one call per expression {min(alone):.2f} s, {min(alone) / min(together):.2f} times as long; "
        f"{sum(map(bool, pixels))} counts differ, by {max(pixels)} pixels at most"
    )


@torch.inference_mode()
def one_by_one(model, processor, dataset: datasets.Dataset, threshold: float = 0.5) -> list[tuple[int, int]]:
    """[intersection, union] of every sentence in the order of (ref_id, sent_id), each by a call with its image."""
    pairs = {}
    for row in dataset:
        truth = decode_mask(row["mask"])
        for sentence in row["sentences"]:
            inputs = processor(images=row["image"], text=sentence["sent"]).to(dtype=model.dtype)
            outputs = model(**inputs)
            (answer,) = processor.post_process_referring_segmentation(outputs, [truth.shape], threshold)
            pairs[row["ref_id"], sentence["sent_id"]] = intersection_and_union(answer["mask"], truth)
    return [pairs[ids] for ids in sorted(pairs)]


def scenes(images: int, side: int) -> datasets.Dataset:
    """Drawn scenes, `side` pixels wide, with one expression more than their six: the last one a second time."""
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(folder, {"test": images}, image_size=side)
        table = load_referring_dataset("refer", root=folder, dataset="scenes", split_by="scenes")["test"]
        rows = table.to_list()  # with the files' bytes
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            if following is None or following["image_id"] != row["image_id"]:
                again = row["sentences"][-1]
                row["sentences"].append(again | {"sent_id": -row["ref_id"] - 1})
        for row in rows:
            with open(row["image"]["path"], "rb") as file:
                row["image"] = {"bytes": file.read(), "path": None}
        return datasets.Dataset.from_list(rows, features=table.features)


if __name__ == "__main__":
    main()
