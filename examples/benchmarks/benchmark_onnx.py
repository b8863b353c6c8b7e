"""Time per expression of the ONNX graphs on onnxruntime against the model on torch, in one run.

    python examples/benchmarks/benchmark_onnx.py [--rounds 5] [--threads 2]

For one image with one expression and with eight, of eight words each, for the shipped model and for the paper's CNN
model (Darknet-53 at 416 pixels, random weights); both libraries with as many threads, one after the other in each
round. "image known" leaves the image half out: it has been asked about before.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from transformers import HfArgumentParser

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.examples.benchmarks.timing import by_turns
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.hub.runtimes.export_onnx import write_graphs

WORDS = 8


@dataclass
class BenchmarkArguments:
    rounds: int = 5
    threads: int = 2


def main():
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    models = {
        "shipped, 160 px": M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT),
        "Darknet-53, 416 px": M3DecForImageSegmentation(M3DecConfig()),
    }
    print(f"{arguments.threads} threads, float32, ms per expression, medians of {arguments.rounds} rounds")
    print("| model | expressions | torch | onnxruntime | ratio | image known: torch | onnxruntime | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            write_graphs(model.eval(), Path(folder))
            for expressions in (1, 8):
                figures = measure(model, Path(folder), expressions, arguments)
                print(f"| {name} | {expressions} | " + " | ".join(figures) + " |", flush=True)


@torch.inference_mode()
def measure(
    model: M3DecForImageSegmentation, folder: Path, expressions: int, arguments: BenchmarkArguments
) -> list[str]:
    """The cells of one line: both halves, then the text half alone; torch, onnxruntime, and their ratio."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
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
    pixels, arrays = pixel_values.numpy(), {name: tensor.numpy() for name, tensor in words.items()}

    def onnx_features():
        return image_half.run(None, {"pixel_values": pixels})[0]

    known, onnx_known = model.get_image_features(pixel_values), onnx_features()
    calls = {
        "torch": lambda: model(image_features=model.get_image_features(pixel_values), **words),
        "onnx": lambda: text_half.run(None, {"image_features": onnx_features(), **arrays}),
        "torch, known": lambda: model(image_features=known, **words),
        "onnx, known": lambda: text_half.run(None, {"image_features": onnx_known, **arrays}),
    }
    by_turns(calls, rounds=1)  # warms up
    seconds, _ = by_turns(calls, arguments.rounds)
    whole, theirs, text, their_text = (1000 * statistics.median(s) / expressions for s in seconds.values())
    pairs = ((whole, theirs), (text, their_text))
    return [cell for ours, other in pairs for cell in (f"{ours:.1f}", f"{other:.1f}", f"{ours / other:.2f}")]


if __name__ == "__main__":
    main()
