"""One image with eight expressions against eight calls with one: what encoding the image once is worth.

    python examples/benchmark_expressions.py [--rounds 3]

Prints both times, as a ratio of minima measured in one run, for the paper's CNN model (random weights, 416 pixels) and
the shipped one.
"""

import time
from argparse import ArgumentParser

import torch

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.hub import SHIPPED_CHECKPOINT

EXPRESSIONS = 8


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{torch.get_num_threads()} threads, float32, {EXPRESSIONS} expressions of 8 words about one image")
    compare("paper, Darknet-53, 416 px", M3DecForImageSegmentation(M3DecConfig()), rounds)
    compare("shipped, drawn scenes", M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT), rounds)


@torch.inference_mode()
def compare(name: str, model: M3DecForImageSegmentation, rounds: int) -> None:
    model.eval()
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


if __name__ == "__main__":
    main()
