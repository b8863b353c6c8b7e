"""How long answers take: four tables, each contestant in a process of its own.

    python examples/benchmarks/benchmark_inference.py photograph  # from a JPEG file to masks, stage by stage
    python examples/benchmarks/benchmark_inference.py models  # at the paper's sizes, beside CLIPSeg
    python examples/benchmarks/benchmark_inference.py start  # until the first answer
    python examples/benchmarks/benchmark_inference.py images  # m3dec infer

`--page docs/speed.md` writes the table into the page. The contestants of `models` have random weights.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BertConfig,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.examples import PHOTOGRAPHS
from m3dec.examples.benchmarks.timing import by_turns, cell, in_fresh_process, memory, number, publish
from m3dec.examples.training.recipe import RECIPES, read_recipe
from m3dec.hub import PHOTOS_CHECKPOINT
from m3dec.hub.runtimes.export_onnx import ImageHalf, Logits, write_graphs
from m3dec.mask_decoder import DoubledConvolution
from m3dec.processing import pipeline_m3dec

COUNTS = (1, 8)  # of expressions
EXPRESSIONS = ["the cup", "the spoon", "the coffee", "the left cup", "the table", "the saucer", "the cat", "the handle"]
SIZES = {"0.3": (640, 480), "2": (1600, 1200), "12": (4000, 3000)}  # megapixels
STAGES = ("decode", "prepare", "image half", "text half", "post-process")

WORDS = 8  # of an expression for `models`
SWIN = "Swin-B + BERT, 480 px"
MODELS = {
    "Darknet-53 + GloVe, 416 px": M3DecConfig,
    SWIN: lambda: M3DecConfig(text_config=BertConfig(), **read_recipe(RECIPES / "refcoco_swin_bert.yaml")["model"]),
}
KINDS = ("as § III-D is written", "as it is", "fused", "fused, bfloat16", "fused, compiled", "fused, int8")
ON_ONNX = ("ONNX", "ONNX, int8")
LARGE = [f"{SWIN}, {kind}" for kind in ("fused, compiled", *ON_ONNX)]  # minutes and gigabytes: by --only alone
RIVAL = "CLIPSeg rd64-refined"
REFINED = {"vision_config": {"patch_size": 16}, "use_complex_transposed_convolution": True}
# The config, and whether the image is read once: transformers reads it once for each expression.
RIVALS = {RIVAL: (REFINED, False), f"{RIVAL}, read once": (REFINED, True), "CLIPSeg, patches of 32": ({}, False)}


def main(command_line: list[str] | None = None):
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all processes of a contestant")
    parser.add_argument("--model", help="a folder in place of the model for photographs, or of those of `models`")
    parser.add_argument("--only", nargs="+", help="for `models`: words, of which a contestant's name has one")
    parser.add_argument("--images", type=int, default=64, help="for `images`: how many a round")
    parser.add_argument("--page", type=Path, help="a file to write the table into")
    options = parser.parse_args(command_line)
    with tempfile.TemporaryDirectory() as folder:
        header, rows = TABLES[options.table](options, Path(folder))
    publish(options.table, header, rows, options.rounds, options.threads, options.page)


# From a file to masks


def photograph(options: Namespace, folder: Path) -> tuple[str, list[list[str]]]:
    contestants = {}
    for megapixels, size in SIZES.items():
        write_enlarged(folder / f"{megapixels}.jpg", size)
        for count in COUNTS:
            arguments = options.model or PHOTOS_CHECKPOINT, folder / f"{megapixels}.jpg", count
            contestants[megapixels, str(count)] = partial(answering, *arguments)
    rows = [
        [
            *name,
            cell(found["all"], spread=True),
            *(cell(found[stage]) for stage in ("JPEG alone", *STAGES)),
            number(max(found["peak"])),
        ]
        for name, found in by_turns(contestants, options.rounds, options.threads).items()
    ]
    stages = " | ".join(STAGES)
    return f"megapixels | expressions | ms: all | the JPEG's decoding alone | {stages} | peak above the model, MB", rows


def write_enlarged(path: Path, size: tuple[int, int]) -> None:
    """A photograph that ships, at another size and with grain: such a JPEG file is about as large as a phone's."""
    pixels = np.asarray(Image.open(PHOTOGRAPHS / "coffee.jpg").convert("RGB").resize(size), np.float32)
    pixels = pixels + np.random.default_rng(0).normal(0, 5, (*pixels.shape[:2], 1))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def answering(model: Path, path: Path, count: int) -> Callable[[], dict[str, float]]:
    pipe, spent = pipeline("referring-image-segmentation", model=str(model), device="cpu"), {}
    parts = (pipeline_m3dec, "rgb_array_and_size"), (pipe, "preprocess"), (pipe.model, "get_image_features")
    parts += (pipe.model, "forward"), (pipe, "postprocess")
    for (owner, name), stage in zip(parts, STAGES, strict=True):
        setattr(owner, name, watched(getattr(owner, name), stage, spent))
    alone = watched(lambda: Image.open(path).load(), "JPEG alone", spent)
    whole = watched(lambda: pipe(path, text=EXPRESSIONS[:count]), "rest", spent)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far
    loaded = memory("VmRSS")

    def call() -> dict[str, float]:
        spent.clear()
        alone()
        before = sum(spent.values())
        whole()
        return spent | {"all": sum(spent.values()) - before, "peak": memory("VmHWM") - loaded}

    return call


def watched(function: Callable, stage: str, spent: dict[str, float]) -> Callable:
    """The same function; its seconds, without those of watched functions that it calls, are added to `spent`."""

    def timed(*arguments, **keywords):
        inside, start = sum(spent.values()), time.perf_counter()
        result = function(*arguments, **keywords)
        inside = sum(spent.values()) - inside
        spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - start - inside
        return result

    return timed


# At the paper's sizes


def models(options: Namespace, folder: Path) -> tuple[str, list[list[str]]]:
    rows, rival = [], None
    for name in [options.model] if options.model else MODELS:
        contestants = {f"{Path(name).name}, {kind}": partial(m3dec, name, kind, folder) for kind in (*KINDS, *ON_ONNX)}
        if not rows:
            contestants |= {f"{kind}, 352 px": partial(clipseg, *settings) for kind, settings in RIVALS.items()}
        chosen = [key for key in contestants if any(word in key for word in options.only or [""])]
        contestants = {key: contestants[key] for key in chosen if options.only or key not in LARGE}
        if any(key.endswith(ON_ONNX) for key in contestants):
            in_fresh_process(write_onnx, name, folder)
        found = by_turns(contestants, options.rounds, options.threads)
        rival = rival or next((statistics.median(each["8"]) for key, each in found.items() if RIVAL in key), None)
        for key, each in found.items():
            cells = [cell(each[part], spread=part in ("1", "8")) for part in ("1", "8", "1, known", "8, known")]
            one, eight = statistics.median(each["1"]), statistics.median(each["8"])
            rows.append([key, *cells, f"{eight / (8 * one):.2f}", f"{rival / eight:.2g}" if rival else "–"])
    known = "8 | image known: 1 | image known: 8"
    return f"model | ms: 1 expression | {known} | 8 in one call, of 8 calls | 8: times as fast as {RIVAL}", rows


def m3dec(name: str, kind: str, folder: Path) -> Callable[[], dict[str, float]]:
    config = config_of(name)
    image, words = torch.randn(1, 3, config.image_size, config.image_size), {}
    for count in COUNTS:
        ids = torch.randint(2, config.vocab_size, (count, WORDS))
        words[count] = torch.zeros(count, dtype=torch.int64), ids, torch.ones_like(ids)
    if kind in ON_ONNX:
        return on_onnx(kind, folder, image, words)
    model = M3DecForImageSegmentation(config).eval()
    if kind == KINDS[0]:
        as_written(model)
    elif kind.startswith("fused"):
        model.fuse_for_inference()
    if kind == "fused, bfloat16":
        model.to(torch.bfloat16)
    if kind == "fused, int8":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM})
    image_half, text_half, image = ImageHalf(model), Logits(model, "image_features"), image.to(model.dtype)
    if kind == "fused, compiled":
        torch._dynamo.config.allow_rnn = True
        image_half, text_half = torch.compile(image_half), torch.compile(text_half)
    return by_halves(lambda count: image_half(image), lambda features, count: text_half(features, *words[count]))


def config_of(name: str) -> M3DecConfig:
    return MODELS[name]() if name in MODELS else M3DecConfig.from_pretrained(name)


def as_written(model: M3DecForImageSegmentation) -> M3DecForImageSegmentation:
    """The same network with its upsampling as a layer of its own."""
    for layer in model.mask_decoder.modules():
        if isinstance(layer, DoubledConvolution):
            layer.__class__ = nn.Conv2d
    return model


def write_onnx(name: str, folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    write_graphs(M3DecForImageSegmentation(config_of(name)).eval(), folder)
    for half in ("image_half", "text_half"):  # onnxruntime's convolutions take unsigned weights
        quantize_dynamic(folder / f"{half}.onnx", folder / f"{half}, int8.onnx", weight_type=QuantType.QUInt8)


def on_onnx(kind: str, folder: Path, image: Tensor, words: dict[int, tuple[Tensor, ...]]) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    image_half, text_half = (
        onnxruntime.InferenceSession(folder / f"{half}{kind.removeprefix('ONNX')}.onnx", options).run
        for half in ("image_half", "text_half")
    )
    names, pixels = ("image_index", "input_ids", "attention_mask"), {"pixel_values": image.numpy()}
    arrays = {count: dict(zip(names, [row.numpy() for row in rows], strict=True)) for count, rows in words.items()}
    return by_halves(
        lambda count: image_half(None, pixels)[0],
        lambda features, count: text_half(None, {"image_features": features, **arrays[count]}),
    )


def clipseg(config: dict, once: bool) -> Callable[[], dict[str, float]]:
    model = CLIPSegForImageSegmentation(CLIPSegConfig(**config)).eval()
    image, ids = torch.randn(1, 3, 352, 352), torch.randint(2, 40000, (max(COUNTS), WORDS + 2))  # with start and end

    def image_half(count: int) -> list[Tensor]:
        images = image if once else image.expand(count, -1, -1, -1)
        states = model.clip.get_image_features(images, output_hidden_states=True, interpolate_pos_encoding=True)
        return [states.hidden_states[layer + 1] for layer in model.extract_layers]

    def text_half(features: list[Tensor], count: int) -> Tensor:
        sentences = model.get_conditional_embeddings(count, ids[:count])
        return model.decoder([each.expand(count, -1, -1) for each in features], sentences).logits

    return by_halves(image_half, text_half)


def by_halves(image_half: Callable, text_half: Callable) -> Callable[[], dict[str, float]]:
    """A call that gives the seconds for each of `COUNTS` expressions, and those that a known image leaves of them."""

    @torch.inference_mode()
    def call() -> dict[str, float]:
        found = {}
        for count in COUNTS:
            start = time.perf_counter()
            features = image_half(count)
            known = time.perf_counter()
            text_half(features, count)
            end = time.perf_counter()
            found |= {str(count): end - start, f"{count}, known": end - known}
        return found

    return call


# Until the first answer

# B2 with random weights: about as many as the model for photographs has.
SEGFORMER = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}
STEPS = ("import", "load", "first answer")
BARE = (
    "import torch, transformers, safetensors.torch",
    "{name: weight.clone() for name, weight in safetensors.torch.load_file(f'{model}/model.safetensors').items()}",
)
SEGMENTING = (
    "from transformers import pipeline",
    "pipe = pipeline('image-segmentation', model=model, device='cpu')",
    "pipe(image)",
)
ASKING = (
    "import m3dec; from transformers import pipeline",
    "pipe = pipeline('referring-image-segmentation', model=model, device='cpu')",
    "pipe(image, text='the cat')",
)


def start(options: Namespace, folder: Path) -> tuple[str, list[list[str]]]:
    names = str(options.model or PHOTOS_CHECKPOINT), str(PHOTOGRAPHS / "cat.jpg")
    SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER)).save_pretrained(folder / "segformer")
    SegformerImageProcessor().save_pretrained(folder / "segformer")
    bare, segmenting, asking = (
        "\n".join(
            ["import sys, time; model, image = sys.argv[1:]", *(f"{step}; print('at', time.time())" for step in part)]
        )
        for part in (BARE, SEGMENTING, ASKING)
    )
    predict = ["predict", names[1], "the cat", "--model", names[0], "--output_dir", str(folder)]
    contestants = {
        "torch and transformers imported, the weights loaded": partial(starting, "-c", bare, *names),
        "transformers' own pipeline, a SegFormer of 27 M": partial(
            starting, "-c", segmenting, str(folder / "segformer"), names[1]
        ),
        "the pipeline in Python": partial(starting, "-c", asking, *names),
        "the program `predict`": partial(starting, "-m", "m3dec_command_line", *predict),
    }
    rows = []
    for name, found in by_turns(contestants, options.rounds, options.threads).items():
        stages = [cell(found[step]) if step in found else "–" for step in STEPS]
        rows.append([name, cell(found["all"], spread=True), *stages])
    return f"ms, files in the system's cache | all | {' | '.join(STEPS)}", rows


def starting(*program: str) -> Callable[[], dict[str, float]]:
    def call() -> dict[str, float]:
        begin = time.time()
        done = subprocess.run([sys.executable, *program], stdout=subprocess.PIPE, text=True, check=True)
        whole, lines = time.time() - begin, done.stdout.splitlines()
        times = np.diff([begin, *(float(line[3:]) for line in lines if line.startswith("at "))])
        return {"all": whole, **dict(zip(STEPS, times.tolist(), strict=False))}

    return call


# Many images

SHARD = 8  # images of a part of infer's output


def images(options: Namespace, folder: Path) -> tuple[str, list[list[str]]]:
    (folder / "images").mkdir()
    shipped = sorted(PHOTOGRAPHS.glob("*.jpg"))
    for copy in range(options.images):
        shutil.copy(shipped[copy % len(shipped)], folder / "images" / f"{copy}.jpg")
    model = options.model or PHOTOS_CHECKPOINT
    threads = {processes: options.threads // processes or 1 for processes in (1, 2)}
    contestants = {processes: partial(inferring, processes, each, model, folder) for processes, each in threads.items()}
    measured = by_turns(contestants, options.rounds, options.threads)
    rows = [[str(n), str(threads[n]), cell(found["images a second"], 1, spread=True)] for n, found in measured.items()]
    return "processes of `infer` | threads of each | images a second, 2 expressions each", rows


def inferring(processes: int, threads: int, model: Path, folder: Path) -> Callable[[], dict[str, float]]:
    """The rate from when each process has written its first part: imports and loading are in the table of starts."""
    flags = ["--model", model, "--input", folder / "images", "--expressions", *EXPRESSIONS[:2], "--shard_size", SHARD]

    def call() -> dict[str, float]:
        output = Path(tempfile.mkdtemp(dir=folder))
        given = [str(flag) for flag in (*flags, "--output", output, "--world_size", processes, "--rank")]
        limit = {"initializer": torch.set_num_threads, "initargs": (threads,)}
        with ProcessPoolExecutor(processes, get_context("spawn"), **limit) as pool:  # a process left would not let end
            list(pool.map(infer_silently, [[*given, str(rank)] for rank in range(processes)]))
        written = sorted(path.stat().st_mtime for path in output.glob("part-*"))[processes - 1 :]
        return {"images a second": SHARD * (len(written) - 1) / (written[-1] - written[0])}

    return call


def infer_silently(flags: list[str]) -> None:
    from m3dec.examples import infer  # its imports take memory in every process of the other tables

    with redirect_stdout(None):
        infer.main(flags)


TABLES = {function.__name__: function for function in (photograph, models, start, images)}

if __name__ == "__main__":
    main()
