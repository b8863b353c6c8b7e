"""Time per expression of the ONNX graphs on onnxruntime against the model on torch, in one run.

    python examples/benchmarks/benchmark_onnx.py [--rounds 5] [--threads 2]

For one picture with one expression and with eight, of eight words each, for the shipped model and for the paper's CNN
model (Darknet-53 at 416 pixels, random weights); both libraries with as many threads, one after the other in each
round. "picture known" leaves the image half out: it has been asked about before.
"""

import statistics
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

import onnxruntime
import torch

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.hub.runtimes.export_onnx import write_graphs

WORDS = 8


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    models = {
        "shipped, 160 px": M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT),
        "Darknet-53, 416 px": M3DecForImageSegmentation(M3DecConfig()),
    }
    print(f"{arguments.threads} threads, float32, ms per expression, medians of {arguments.rounds} rounds")
    print("| model | expressions | torch | onnxruntime | ratio | picture known: torch | onnxruntime | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            write_graphs(model.eval(), Path(folder))
            for expressions in (1, 8):
                figures = measure(model, Path(folder), expressions, arguments.rounds, arguments.threads)
                print(f"| {name} | {expressions} | " + " | ".join(figures) + " |", flush=True)


@torch.inference_mode()
def measure(model: M3DecForImageSegmentation, folder: Path, expressions: int, rounds: int, threads: int) -> list[str]:
    """The cells of one line: whole, then text half alone; torch, onnxruntime, and the first over the second."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    image_half, text_half = (
        onnxruntime.InferenceSession(folder / f"{half}_half.onnx", options, providers=["CPUExecutionProvider"])
        for half in ("image", "text")
    )
    pixel_values = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    words = {
        "image_index": torch.zeros(expressions, dtype=torch.int64),
        "input_ids": torch.randint(2, model.config.vocab_size, (expressions, WORDS)),
        "attention_mask": torch.ones(expressions, WORDS, dtype=torch.int64),
    }
    arrays = {name: tensor.numpy() for name, tensor in words.items()}
    times = {"torch": [], "torch, known": [], "onnx": [], "onnx, known": []}
    for round_number in range(rounds + 1):
        start = time.perf_counter()
        features = model.get_image_features(pixel_values)
        between = time.perf_counter()
        model(image_features=features, **words)
        end = time.perf_counter()
        found = {"torch": end - start, "torch, known": end - between}
        start = time.perf_counter()
        (features,) = image_half.run(None, {"pixel_values": pixel_values.numpy()})
        between = time.perf_counter()
        text_half.run(None, {"image_features": features, **arrays})
        end = time.perf_counter()
        found |= {"onnx": end - start, "onnx, known": end - between}
        for name, seconds in found.items():
            if round_number > 0:  # the first one warms up
                times[name].append(1000 * seconds / expressions)
    cells = []
    for known in ("", ", known"):
        ours, theirs = statistics.median(times[f"torch{known}"]), statistics.median(times[f"onnx{known}"])
        cells += [f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"]
    return cells


if __name__ == "__main__":
    main()
