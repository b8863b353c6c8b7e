import logging
import struct

import numpy as np
import pytest
import torch
from torch import nn

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.configuration.configuration_m3dec import DARKNET53
from m3dec.hub.inward.darknet_file import read_darknet53

DARKNET, YOLOV3 = 40_620_640, 62_001_757  # numbers of darknet53.conv.74 and of yolov3.weights
NEW, OLD = struct.pack("<3iq", 0, 2, 0, 32013312), struct.pack("<3ii", 0, 1, 0, 32013312)


def small_config(**settings):
    """Darknet-53 with as little as possible behind it."""
    return M3DecConfig(
        backbone_config={"model_type": "timm_backbone", **DARKNET53},
        image_size=64,
        hidden_size=8,
        num_attention_heads=2,
        num_encoder_layers=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        vocab_size=5,
        word_vector_size=4,
        mask_decoder_channels=8,
        **settings,
    )


def features(model):
    """The backbone's three levels of one fixed image of 64 pixels."""
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval().model.vision_encoder.backbone(pixels).feature_maps


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model's Darknet-53, drawn at random, in both layouts, and its features: (path, path), three tensors.

    The file is written in the order in which the model itself runs its convolutions.
    """
    torch.manual_seed(0)
    model = M3DecForImageSegmentation(small_config(backbone_leaky_relu_slope=0.1))
    backbone, ran = model.model.vision_encoder.backbone, []
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda module, *_: ran.append(module))
    levels = features(model)
    assert len(ran) == 2 * 52

    folder = tmp_path_factory.mktemp("darknet")
    with open(folder / "darknet53.conv.74", "wb") as short, open(folder / "yolov3.weights", "wb") as long:
        short.write(NEW)
        long.write(OLD)
        for convolution, norm in zip(ran[::2], ran[1::2], strict=True):
            for tensor in (norm.bias, norm.weight, norm.running_mean, norm.running_var, convolution.weight):
                content = tensor.detach().numpy().tobytes()
                short.write(content)
                long.write(content)
        long.write(np.random.default_rng(0).random(YOLOV3 - DARKNET, dtype=np.float32).tobytes())
    yield (short.name, long.name), levels
    for file in folder.iterdir():
        file.unlink()  # 400 MB, which pytest would keep for three runs


@pytest.mark.parametrize("layout", [0, 1])
def test_weights_written_in_the_order_the_model_runs_come_back_as_bit_identical_features(written, layout, caplog):
    paths, expected = written
    with caplog.at_level(logging.WARNING, logger="m3dec"):
        part = read_darknet53(paths[layout])
    config = small_config(backbone_leaky_relu_slope=part.leaky_relu_slope)
    ours = features(M3DecForImageSegmentation.from_pretrained_parts(config, backbone=part.state_dict))
    assert len(ours) == len(expected) == 3
    for level, other in zip(ours, expected, strict=True):
        assert torch.isfinite(level).all() and level.std() > 0
        assert torch.equal(level, other)
    assert (part.name, part.leaky_relu_slope) == ("darknet53", 0.1)
    assert (part.image_mean, part.image_std) == ((0, 0, 0), (1, 1, 1))
    assert sum(tensor.numel() for tensor in part.state_dict.values()) == DARKNET

    (record,) = caplog.records
    assert "trained on images of the val and test splits of RefCOCO" in record.getMessage()
    assert "weights trained without those images exist" in record.getMessage()


@pytest.fixture
def sparse_file(tmp_path):
    """Write `header`, then zeros up to `size` bytes, which take no room on the disk; then `numbers` at `place`."""

    def write(header, size, numbers=(), place=0):
        path = tmp_path / "darknet.weights"
        with open(path, "wb") as file:
            file.write(header[:size])
            file.truncate(size)
            file.seek(place)
            file.write(struct.pack(f"<{len(numbers)}f", *numbers))
        return path

    return write


@pytest.mark.parametrize(
    ("header", "size", "has"),
    [
        (NEW, 0, "0 numbers (0 bytes)"),
        (NEW, 11, "0 numbers (11 bytes)"),
        (NEW, 20, "0 numbers (20 bytes)"),
        (NEW, 20 + 4 * (DARKNET - 1), "40,620,639 numbers (162,482,576 bytes)"),
        (NEW, 20 + 4 * (DARKNET + 1), "40,620,641 numbers (162,482,584 bytes)"),
        (NEW, 20 + 4 * DARKNET - 1, "40,620,639 numbers (162,482,579 bytes)"),
        (OLD, 16 + 4 * (DARKNET + 1), "40,620,641 numbers (162,482,580 bytes)"),
        (NEW, 20 + 4 * (YOLOV3 - 1), "62,001,756 numbers (248,007,044 bytes)"),
        (NEW, 20 + 4 * (YOLOV3 + 1), "62,001,758 numbers (248,007,052 bytes)"),
        (NEW, 20 + 4 * 25_000_000_000, "25,000,000,000 numbers (100,000,000,020 bytes)"),  # no memory could hold it
    ],
)
def test_a_file_of_another_length_is_refused_with_both_lengths_before_it_is_read(sparse_file, header, size, has):
    with pytest.raises(ValueError) as refused:
        read_darknet53(sparse_file(header, size))
    message = str(refused.value)
    assert "40,620,640 numbers" in message and "62,001,757 numbers" in message
    assert f"{len(header) + 4 * DARKNET:,} bytes" in message and f"{len(header) + 4 * YOLOV3:,} bytes" in message
    assert f"darknet.weights has {has}." in message


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_file_with_a_number_that_is_not_finite_is_refused(sparse_file, number):
    path = sparse_file(NEW, 20 + 4 * YOLOV3, [number], place=20 + 4 * (DARKNET - 1))
    with pytest.raises(ValueError, match=r"1 of the 40,620,640 numbers of Darknet-53 in .* NaN or infinity"):
        read_darknet53(path)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<3iq", 0, -2, 0, 0),
        struct.pack("<3iq", -1, 20, 0, 0),
        struct.pack("<3iq", 1000, 2, 0, 0),
        struct.pack("<3iq", 0, 1000, 0, 0),
        struct.pack("<3iq", 0, 2, -1, 0),
        struct.pack("<3iq", 0, 2, 0, -1),
        struct.pack("<3ii", 0, 1, 0, -1),
        struct.pack(">3iq", 0, 2, 0, 1),
        b"<!DOCTYPE html><html",
    ],
)
def test_a_file_that_does_not_start_as_darknet_does_is_refused(sparse_file, header):
    major, minor = struct.unpack_from("<2i", header)
    size = (20 if 10 * major + minor >= 2 else 16) + 4 * DARKNET
    with pytest.raises(ValueError, match="starts with its version"):
        read_darknet53(sparse_file(header, size))
