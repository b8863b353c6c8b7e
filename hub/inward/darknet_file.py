"""Darknet-53 from a file in Darknet's own format, as YOLOv3's authors publish it."""

import logging
import os
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import ConvNormAct

from .pretrained_parts import PretrainedBackbone

logger = logging.getLogger(__name__)

NUM_FLOATS = 40_620_640  # of the 52 convolutions that timm's darknet53 has: all of darknet53.conv.74
NUM_FLOATS_YOLOV3 = 62_001_757  # of yolov3.weights, which starts with the same 52 convolutions

# Darknet's order within a convolution.
PARTS = ("bn.bias", "bn.weight", "bn.running_mean", "bn.running_var", "conv.weight")


def read_darknet53(path: str | Path) -> PretrainedBackbone:
    """Read the 52 convolutions of Darknet-53 from `darknet53.conv.74` or `yolov3.weights`, or a file of their layout.

    The file starts with three int32 (major, minor, revision) and the number of images seen (int64 from version 0.2 on,
    int32 before). Then come float32 numbers, little-endian: for each convolution the batch norm's shift, scale, mean
    and variance, and the kernel (out, in, height, width).

    Args:
        path: the file. Its length, not its name, says which of the two it is.

    Returns:
        The backbone "darknet53": 52 x 5 float32 tensors under timm's names, without a classifier. Images for it are RGB
        from 0.0 to 1.0, and its LeakyReLUs have slope 0.1: set `M3DecConfig.backbone_leaky_relu_slope` to
        `leaky_relu_slope`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another length (its contents are not read then), its header is none of Darknet's, or
            the backbone's numbers are not all finite.
    """
    size = os.path.getsize(path)
    header_size = _check_header(path, size)
    if size == header_size + 4 * NUM_FLOATS:
        origin = "the public file of this length was trained on ImageNet alone; but if this was cut out of YOLOv3's: "
    else:
        origin = "public "
    logger.warning(
        "%s: %sYOLOv3 weights were trained on images of the val and test splits of RefCOCO, RefCOCO+ and RefCOCOg, so "
        "scores on these splits come out too high; weights trained without those images exist, such as the paper's.",
        path,
        origin,
    )
    numbers = np.fromfile(path, dtype="<f4", count=NUM_FLOATS, offset=header_size)
    not_finite = NUM_FLOATS - np.isfinite(numbers).sum()
    if not_finite:
        raise ValueError(
            f"Weights are finite, but {not_finite:,} of the {NUM_FLOATS:,} numbers of Darknet-53 in {path} are NaN or "
            "infinity. Get the file again."
        )
    shapes = _shapes_in_order()
    tensors = torch.from_numpy(numbers).split([shape.numel() for shape in shapes.values()])
    state_dict = {name: tensor.view(shapes[name]) for name, tensor in zip(shapes, tensors, strict=True)}
    return PretrainedBackbone("darknet53", state_dict, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), leaky_relu_slope=0.1)


def _check_header(path: str | Path, size: int) -> int:
    """How many bytes the header takes, 16 or 20; a ValueError where it or the `size` is not that of Darknet-53."""
    version = np.fromfile(path, dtype="<i4", count=3)
    major, minor, revision = version.tolist() if len(version) == 3 else (0, 2, 0)  # too short: the next check says so
    header_size = 20 if 10 * major + minor >= 2 else 16
    expected, expected_yolov3 = header_size + 4 * NUM_FLOATS, header_size + 4 * NUM_FLOATS_YOLOV3
    if size not in (expected, expected_yolov3):
        raise ValueError(
            f"Darknet-53 is read from a file of {NUM_FLOATS:,} numbers ({expected:,} bytes with its header, as "
            f"darknet53.conv.74) or of {NUM_FLOATS_YOLOV3:,} numbers ({expected_yolov3:,} bytes, as yolov3.weights), "
            f"but {path} has {max(size - header_size, 0) // 4:,} numbers ({size:,} bytes). Download it again, or give "
            "one of these two."
        )
    seen = np.fromfile(path, dtype="<i8" if header_size == 20 else "<i4", count=1, offset=12).item()
    if not (0 <= major < 1000 and 0 <= minor < 1000 and revision >= 0 and seen >= 0):
        raise ValueError(
            "A Darknet file starts with its version, three small numbers such as 0, 2, 0, and the number of images "
            f"seen, but {path} starts with {major}, {minor}, {revision} and {seen}. Is it a Darknet file?"
        )
    return header_size


def _shapes_in_order() -> dict[str, torch.Size]:
    """The names and shapes of timm's tensors in the file's order: timm makes its convolutions in Darknet's order."""
    with torch.device("meta"):
        model = timm.create_model("darknet53")
    convolutions = {name: part.state_dict() for name, part in model.named_modules() if isinstance(part, ConvNormAct)}
    return {f"{name}.{part}": tensors[part].shape for name, tensors in convolutions.items() for part in PARTS}
