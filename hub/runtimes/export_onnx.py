"""A trained model as ONNX graphs, for servers: the image half, the text half and the whole, and how well they agree.

    m3dec export MODEL FOLDER --onnx

The folder then holds, beside the processor's files:
    image_half.onnx     pixel_values (images, 3, S, S) → image_features (images, P, C), once for each image
    text_half.onnx      image_features, image_index, input_ids, attention_mask → logits (expressions, h, w)
    model.onnx          pixel_values, image_index, input_ids, attention_mask → logits
    onnx_segmenter.py   the pipeline's answers from the two halves, without torch
    report.json         how far the graphs' logits and masks are from the model's

Numbers of images, expressions and words (up to `max_words`) are free; image_index (expressions,) says which image each
expression is about. The graphs check no value: ids must be rows of the vocabulary, and padding stands on the right.
"""

import copy
import json
import os
import shutil
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from m3dec.modeling_m3dec import M3DecForImageSegmentation
from m3dec.processing.letterbox import letterbox_size
from m3dec.processing.processing_m3dec import M3DecProcessor
from m3dec.processing.referring_data.scenes import draw_scene

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# numpy.allclose with atol=1e-4, as Optimum validates its exports: 1e-5 of a logit may be rounding. Logits reach 282.
# There torch itself is up to 2.8e-4 from float64, and 1.8e-4 from itself with other threads.
TOLERANCE, ROUNDING = 1e-4, 1e-5
ONE_FILE = 1.5e9  # bytes of weights; a graph of more than 2 GB must have them in a file of their own


def export_onnx(
    model: str | Path | M3DecForImageSegmentation,
    processor: M3DecProcessor | None,
    folder: str | Path,
    scenes: int = 34,
) -> dict:
    """Write the graphs, and measure them on drawn scenes.

    Args:
        model: a folder or hub name, or a model, which stays as it is. The graphs compute in float32.
        processor: None for the one that lies beside the model. Its `size` is the S of the graphs.
        folder: a new or empty one, or one of an earlier export, whose files of these names are replaced.
        scenes: drawn images, of six expressions each, to compare on.

    Returns:
        What report.json holds: "expressions"; for "halves" and "whole" what `agreement` says; "agrees", whether both
        are within "tolerance" beyond rounding; and the "versions" of the packages.

    Raises:
        FileExistsError: `folder` is a file, or holds anything else, such as a model.
        ModuleNotFoundError: a package of the extra `[onnx]` is missing.
        ValueError: the processor's size is not one that the model can take, or it leaves out a step.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX graphs need {' and '.join(missing)}: pip install 'm3dec[onnx]'")
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").is_file()):
        raise FileExistsError(f"ONNX graphs need a folder of their own, but {folder} is there. Name another.")
    if not isinstance(model, M3DecForImageSegmentation):
        processor = processor or M3DecProcessor.from_pretrained(model)
        model = M3DecForImageSegmentation.from_pretrained(model)
    if processor is None:
        raise ValueError("A model that is no folder needs its processor, but processor is None. Give both.")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(processor.image_processor, step):
            raise ValueError(f"The segmenter resizes, rescales and normalizes, but the processor has {step}=False.")
    model = copy.deepcopy(model).float().cpu().eval()
    side, _ = letterbox_size(processor.image_processor)
    if side != model.config.image_size:
        model.set_image_size(side)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary)
        write_graphs(model, written)
        processor.save_pretrained(written)
        shutil.copyfile(Path(__file__).with_name("onnx_segmenter.py"), written / "onnx_segmenter.py")
        report = compare(model, processor, written, scenes)
        folder.mkdir(exist_ok=True)
        for file in written.iterdir():
            os.replace(file, folder / file.name)
        (written / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(written / "report.json", folder / "report.json")
    return report


class ImageHalf(nn.Module):
    def __init__(self, model: M3DecForImageSegmentation):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values, return_dict=True).last_hidden_state  # (B, P, C)  F_enc


class Logits(nn.Module):
    """The whole model or its text half: `image` is "pixel_values" or "image_features"."""

    def __init__(self, model: M3DecForImageSegmentation, image: str):
        super().__init__()
        self.model, self.image = model, image

    def forward(self, image: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = {"input_ids": input_ids, "attention_mask": attention_mask, "image_index": image_index}
        return self.model(**{self.image: image}, **words).logits  # (N, h, w)


class OnnxRecurrent(nn.Module):
    """An LSTM or GRU as ONNX's own operator: torch.export would unroll it, for one number of words."""

    def __init__(self, network: nn.LSTM | nn.GRU):
        super().__init__()
        self.operator = type(network).__name__
        self.hidden_size = network.hidden_size
        self.attributes = {"hidden_size": network.hidden_size}
        order = [0, 3, 1, 2]  # ONNX has input, output, forget, cell; torch input, forget, cell, output
        if self.operator == "GRU":
            order = [1, 0, 2]  # ONNX has update, reset, new; torch reset, update, new
            self.attributes["linear_before_reset"] = 1

        def gates(weight: Tensor) -> Tensor:
            return weight.detach().unflatten(0, (len(order), -1))[order].flatten(0, 1)

        biases = torch.cat([gates(network.bias_ih_l0), gates(network.bias_hh_l0)])
        self.register_buffer("input_weight", gates(network.weight_ih_l0)[None])  # one direction each
        self.register_buffer("hidden_weight", gates(network.weight_hh_l0)[None])
        self.register_buffer("biases", biases[None])

    def forward(self, vectors: Tensor) -> tuple[Tensor]:
        """From (N, T, D) to the hidden states (N, T, C/2), where torch's modules have them: first of a tuple."""
        num_expressions, num_words, _ = vectors.shape
        states = torch.onnx.ops.symbolic(
            self.operator,
            [vectors.transpose(0, 1), self.input_weight, self.hidden_weight, self.biases],
            self.attributes,
            dtype=vectors.dtype,
            shape=(num_words, 1, num_expressions, self.hidden_size),
        )
        return (states.squeeze(1).transpose(0, 1),)


@torch.no_grad()
def write_graphs(model: M3DecForImageSegmentation, folder: Path) -> None:
    """image_half.onnx, text_half.onnx and model.onnx into `folder`."""
    model, config = copy.deepcopy(model), model.config
    language = model.model.language_encoder
    if config.text_config is None:
        language.forward_recurrent = OnnxRecurrent(language.forward_recurrent)
        language.backward_recurrent = OnnxRecurrent(language.backward_recurrent)

    # What is traced must not look like a special case: not one of anything, and no two numbers alike.
    num_words = max(2, config.max_words // 2)
    ones = torch.ones(5, num_words, dtype=torch.int64)
    words = {"image_index": torch.tensor([0, 0, 1, 2, 1]), "input_ids": ones, "attention_mask": ones.clone()}
    pixels = {"pixel_values": torch.zeros(3, 3, config.image_size, config.image_size)}
    features = {"image_features": torch.zeros(3, config.num_pixels, config.hidden_size)}
    write_graph(ImageHalf(model), pixels, "image_features", folder / "image_half.onnx")
    write_graph(Logits(model, "image_features"), features | words, "logits", folder / "text_half.onnx")
    write_graph(Logits(model, "pixel_values"), pixels | words, "logits", folder / "model.onnx")


def write_graph(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    images, expressions = Dim("images", min=1), Dim("expressions", min=1)
    words = Dim("words", min=1, max=module.model.config.max_words)
    # Of pixel_values or image_features, image_index, input_ids and attention_mask.
    free = [{0: images}, {0: expressions}, {0: expressions, 1: words}, {0: expressions, 1: words}]
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will not be used, since it shares the same shape constraints")
        torch.onnx.export(
            module.eval(),
            args=tuple(inputs.values()),
            f=path,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(free[: len(inputs)]),
            external_data=size > ONE_FILE,
        )


@torch.inference_mode()
def compare(model: M3DecForImageSegmentation, processor: M3DecProcessor, folder: Path, scenes: int) -> dict:
    """Logits and masks of the graphs in `folder` against the model's, on drawn scenes, one, two or three at a time."""
    import onnxruntime

    run = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"]).run
        for name in ("image_half", "text_half", "model")
    }
    expected, halves, whole, start = [], [], [], 0
    while start < scenes:
        drawn = [draw_scene(seed=1, split="test", index=i) for i in range(start, min(start + 1 + start % 3, scenes))]
        start += len(drawn)
        texts = [[expression.sent for expression in scene.expressions] for scene in drawn]
        inputs = processor(images=[scene.image for scene in drawn], text=texts)
        inputs["image_index"] = torch.tensor([i for i, group in enumerate(texts) for _ in group])
        expected.append(model(**inputs).logits.numpy())
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        whole += run["model"](None, arrays)
        (features,) = run["image_half"](None, {"pixel_values": arrays.pop("pixel_values")})
        halves += run["text_half"](None, {"image_features": features, **arrays})
    model_logits = np.concatenate(expected)
    report = {
        "halves": agreement(model_logits, np.concatenate(halves)),
        "whole": agreement(model_logits, np.concatenate(whole)),
    }
    agrees = all(
        found["largest_difference_beyond_rounding"] <= TOLERANCE and found["largest_logit_among_them"] < TOLERANCE
        for found in report.values()
    )
    versions = {name: version(name) for name in ("m3dec", "torch", *PACKAGES)}
    return {
        "expressions": len(model_logits),
        **report,
        "tolerance": TOLERANCE,
        "agrees": agrees,
        "versions": versions,
    }


def agreement(expected: np.ndarray, logits: np.ndarray) -> dict:
    """How far two arrays of logits are apart, and where they are on two sides of 0, a probability of 0.5.

    Returns:
        "largest_logit", of `expected`; "largest_logit_difference"; "largest_difference_beyond_rounding", each less
        `ROUNDING` times its logit; "mask_pixels", their number; "mask_pixels_that_differ"; and
        "largest_logit_among_them", 0.0 where there are none.
    """
    difference, size = np.abs(expected - logits), np.abs(expected)
    differ = (expected > 0) != (logits > 0)
    return {
        "largest_logit": size.max().item(),
        "largest_logit_difference": difference.max().item(),
        "largest_difference_beyond_rounding": (difference - ROUNDING * size).max().item(),
        "mask_pixels": expected.size,
        "mask_pixels_that_differ": differ.sum().item(),
        "largest_logit_among_them": size[differ].max(initial=0.0).item(),
    }


def print_report(report: dict) -> None:
    print(f"{report['expressions']} expressions about drawn scenes, onnxruntime against torch")
    print(
        "| graph | largest logit | largest difference | beyond 1e-5 of the logit | mask pixels | that differ | "
        "largest logit among them |"
    )
    print("|---|---|---|---|---|---|---|")
    for graph in ("halves", "whole"):
        largest, difference, beyond, pixels, differ, among = report[graph].values()
        print(f"| {graph} | {largest:.1f} | {difference:.1e} | {beyond:.1e} | {pixels} | {differ} | {among:.1e} |")
    result = "agree" if report["agrees"] else "DO NOT AGREE"
    print(f"They {result} within {report['tolerance']:.0e} + {ROUNDING:.0e} |logit|.")
