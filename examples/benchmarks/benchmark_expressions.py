"""What encoding an image once is worth, for one image with several expressions and for an evaluation.

    python examples/benchmarks/benchmark_expressions.py [--rounds 3] [--images 24] [--paper_images 2]

Prints times as ratios of minima measured in one run, for the paper's CNN model (random weights, 416 pixels) and the
shipped one: a call with eight expressions against eight calls with one; and `evaluate` of drawn scenes with seven
expressions each against one call per expression, pre- and post-processing and counting included, with what the two
ways' pixel counts differ by.
"""

import tempfile
from dataclasses import dataclass

import datasets
import torch
from accelerate import Accelerator
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.benchmarks.timing import by_turns
from m3dec.examples.evaluation.loop import evaluate
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.sampling import references_by_image
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.referring_iou import intersection_and_union

EXPRESSIONS = 8
EXPRESSIONS_OF_A_SCENE = 7


@dataclass
class BenchmarkArguments:
    rounds: int = 3
    images: int = HfArg(default=24, help="Scenes to evaluate the shipped model on.")
    paper_images: int = HfArg(default=2, help="Scenes to evaluate the paper's model on.")


def main():
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    paper = M3DecForImageSegmentation(M3DecConfig(vocab_size=len(processor.tokenizer))).eval()
    shipped = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT).eval()
    print(f"{torch.get_num_threads()} threads, float32, {EXPRESSIONS} expressions of 8 words about one image")
    compare_calls("paper, Darknet-53, 416 px", paper, arguments.rounds)
    compare_calls("shipped, drawn scenes", shipped, arguments.rounds)
    print(f"evaluation of drawn scenes, {EXPRESSIONS_OF_A_SCENE} expressions each")
    with tempfile.TemporaryDirectory() as folder:
        dataset = scenes(f"{folder}/shipped", arguments.images, shipped.config.image_size)
        compare_evaluation("shipped, drawn scenes", shipped, processor, dataset, arguments.rounds)
        side = paper.config.image_size
        processor.image_processor.size = {"height": side, "width": side}
        dataset = scenes(f"{folder}/paper", arguments.paper_images, side)
        compare_evaluation("paper, Darknet-53, 416 px", paper, processor, dataset, rounds=1)


@torch.inference_mode()
def compare_calls(name: str, model: M3DecForImageSegmentation, rounds: int) -> None:
    pixel_values = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    input_ids = torch.randint(2, model.config.vocab_size, (EXPRESSIONS, 8))
    calls = {
        "together": lambda: model(pixel_values, input_ids),
        "alone": lambda: [model(pixel_values, expression[None]) for expression in input_ids],
    }
    together, alone = (min(times) for times in by_turns(calls, rounds)[0].values())
    print(f"{name}: {together:.3f} s together, {alone:.3f} s one by one, ratio {together / alone:.2f}")


def compare_evaluation(name: str, model, processor, dataset: datasets.Dataset, rounds: int) -> None:
    """Time both ways in turn, and tell by how many pixels their counts differ."""
    accelerator = Accelerator(cpu=True)
    calls = {
        "together": lambda: evaluate(model, processor, dataset, accelerator),
        "alone": lambda: one_by_one(model, processor, dataset),
    }
    seconds, answers = by_turns(calls, rounds)
    results, (together, alone) = answers["together"], (min(times) for times in seconds.values())
    pixels = [
        max(abs(result.intersection - intersection), abs(result.union - union))
        for result, (intersection, union) in zip(results, answers["alone"], strict=True)
    ]
    answered = sum(result.predicted > 0 for result in results)  # random weights may answer with nothing
    print(
        f"{name}: {len(results)} expressions, {answered} answered with pixels, {together:.2f} s, "
        f"by one call per expression {alone:.2f} s, {alone / together:.2f} times as long; "
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


def scenes(folder: str, images: int, side: int) -> datasets.Dataset:
    """Drawn scenes, `side` pixels wide, with one expression more than their six: the last one a second time."""
    write_scenes(folder, {"test": images}, image_size=side)
    table = load_referring_dataset("refer", root=folder, dataset="scenes", split_by="scenes")["test"]
    rows = table.to_list()
    for *_, last in references_by_image(table).values():
        row = rows[last]
        row["sentences"].append(row["sentences"][-1] | {"sent_id": -row["ref_id"] - 1})
    return datasets.Dataset.from_list(rows, features=table.features)


if __name__ == "__main__":
    main()
