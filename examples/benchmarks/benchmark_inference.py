"""What `fuse_for_inference` is worth: one image with eight expressions at the paper's CNN size, step by step.

    python examples/benchmarks/benchmark_inference.py [--rounds 5] [--bfloat16]

Random weights; all models in turn in each round; of each the fastest round counts. "As written" is § III-D to the
letter: nearest upsampling, then a 3x3 convolution, then batch norm. The second table asks CLIPSeg for as many
expressions about one image, which it reads once for each.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.examples.benchmarks.timing import by_turns
from m3dec.mask_decoder import DoubledConvolution

EXPRESSIONS, WORDS = 8, 8
CLIPSEG_SIZE = 352


@dataclass
class BenchmarkArguments:
    rounds: int = 5
    bfloat16: bool = HfArg(default=False, help="Also the fused model under bfloat16 autocast.")


@torch.inference_mode()
def main():
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    torch.manual_seed(0)
    model = with_drawn_statistics(M3DecForImageSegmentation(M3DecConfig()).eval())
    size = model.config.image_size
    inputs = {
        "pixel_values": torch.randn(1, 3, size, size),
        "input_ids": torch.randint(2, model.config.vocab_size, (EXPRESSIONS, WORDS)),
    }
    fused = copy.deepcopy(model).fuse_for_inference()
    models = {
        "as written": as_written(copy.deepcopy(model)),
        "+ upsampling folded: the model as it is": model,
        "+ batch norms folded, kernels made once": copy.deepcopy(fused).to(memory_format=torch.contiguous_format),
        "+ channels last: `fuse_for_inference`": fused,
    }
    calls = {name: partial(model, **inputs) for name, model in models.items()}
    if arguments.bfloat16:
        calls["fused, under bfloat16 autocast"] = torch.autocast("cpu", torch.bfloat16)(partial(fused, **inputs))
    print(f"{torch.get_num_threads()} threads, float32, one image with {EXPRESSIONS} expressions of {WORDS} words")
    logits = [outputs.logits for outputs in print_table(calls, arguments.rounds)]
    changes = ", ".join(f"{(changed - logits[0]).abs().max():.1e}" for changed in logits[1:])
    print(f"logits of at most {logits[0].abs().max():.1f}; those of each later row differ by at most {changes}")

    expressions = {
        "pixel_values": torch.randn(1, 3, CLIPSEG_SIZE, CLIPSEG_SIZE).expand(EXPRESSIONS, -1, -1, -1),
        "input_ids": torch.randint(2, 40000, (EXPRESSIONS, WORDS + 2)),  # with a start and an end
    }
    configs = {
        "CLIPSeg rd64-refined, 352 px": CLIPSegConfig(
            vision_config={"patch_size": 16}, use_complex_transposed_convolution=True
        ),
        "CLIPSeg by its default config (patches of 32), 352 px": CLIPSegConfig(),
    }
    rivals = {name: CLIPSegForImageSegmentation(config).eval() for name, config in configs.items()}
    calls = {name: partial(rival, **expressions) for name, rival in rivals.items()}
    print_table(calls | {f"M3Dec, fused, {size} px": partial(fused, **inputs)}, arguments.rounds)


def print_table(calls: dict[str, Callable], rounds: int) -> list:
    """Time the calls by turns, print a table of them relative to the first, and return what they returned."""
    by_turns(calls, rounds=1)  # warms up
    seconds, outputs = by_turns(calls, rounds)
    first = min(next(iter(seconds.values())))
    print("| | ms an image | ms an expression | speed-up |")
    print("|---|---|---|---|")
    for name, times in seconds.items():
        ms = 1000 * min(times)
        print(f"| {name} | {ms:.0f} | {ms / EXPRESSIONS:.0f} | {first / min(times):.2f} |")
    return list(outputs.values())


def as_written(model: M3DecForImageSegmentation) -> M3DecForImageSegmentation:
    """The same network with its upsampling as a layer of its own."""
    for layer in model.mask_decoder.modules():
        if isinstance(layer, DoubledConvolution):
            layer.__class__ = nn.Conv2d
    return model


def with_drawn_statistics(model: M3DecForImageSegmentation) -> M3DecForImageSegmentation:
    """`model` with batch norms that do something, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


if __name__ == "__main__":
    main()
