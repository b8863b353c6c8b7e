import types

import numpy as np
import pytest
import torch
from mutants import NOTICEABLE, TOLERANCE, distance, draw, drawn, edited, under, weights_of
from test_decoder_layer import layer_norm_by_hand, multi_head_attention_by_hand
from test_language_reconstruction import IN_FLOAT64, positions_by_hand
from test_mask_decoder import batch_norm_2d_by_hand
from test_mutual_attention import linear_by_hand, resized_by_hand
from torch import nn
from transformers import PreTrainedConfig, TimmBackboneConfig

from m3dec import positions, vision_encoder
from m3dec.vision_encoder import VisionEncoder, to_stride

N, SIDE, HEADS, C, WIDTH = 2, 3, 2, 2 * 2 * 5, 13
CHANNELS = (2, 3, 5)  # of the backbone's levels, strides 8, 16 and 32
IMAGE = 96


def places_by_hand(side, channels):
    """Where each pixel of a square map is, row by row: (side * side, channels)."""
    line = positions_by_hand(side, channels // 2)
    return np.array([np.concatenate([line[y], line[x]]) for y in range(side) for x in range(side)])


def encoder_layer_by_hand(pixels, weights):
    """A post-norm transformer layer on one image's pixels (P, C), which look at each other by what and where they are
    and take what they are."""
    placed, attention = pixels + places_by_hand(SIDE, C), under(weights, "self_attention")
    # Keys and values come from different rows, so the shares are taken from one call and the values summed here.
    _, shares = multi_head_attention_by_hand(placed, placed, attention, HEADS)
    value, size = linear_by_hand(pixels, attention, "value"), C // HEADS
    attended = np.zeros_like(pixels)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(pixels)):
            attended[i, part] = sum(shares[head, i, j] * value[j, part] for j in range(len(pixels)))
    pixels = pixels + linear_by_hand(attended, attention, "output")
    pixels = layer_norm_by_hand(pixels, under(weights, "self_attention_norm"))
    hidden = np.maximum(linear_by_hand(pixels, weights, "feed_forward.0"), 0)
    pixels = pixels + linear_by_hand(hidden, weights, "feed_forward.3")
    return layer_norm_by_hand(pixels, under(weights, "feed_forward_norm"))


def difference_of_layer(module, monkeypatch, eager=False):
    monkeypatch.setattr(module, "sine_positions_2d", edited(positions, *IN_FLOAT64).sine_positions_2d)
    layer = drawn(module.TransformerEncoderLayer(C, HEADS, WIDTH)).eval()
    pixels, weights = draw(N, SIDE**2, C), weights_of(layer)
    expected = [encoder_layer_by_hand(rows, weights) for rows in pixels.numpy()]
    return distance(list(layer(pixels, eager)[0].detach()), expected)


@pytest.mark.parametrize("eager", [False, True])
def test_an_encoder_layer_is_the_post_norm_transformer_layer_with_places_on_queries_and_keys(eager, monkeypatch):
    assert difference_of_layer(vision_encoder, monkeypatch, eager) < TOLERANCE


ATTENDED = "self.self_attention(placed, placed, pixels, None, eager)"
PLACED = "placed = pixels + sine_positions_2d"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(ATTENDED, ATTENDED.replace("pixels", "placed"), id="places in the values"),
        pytest.param(ATTENDED, ATTENDED.replace("placed, placed", "pixels, placed"), id="queries without places"),
        pytest.param(ATTENDED, ATTENDED.replace("placed, placed", "placed, pixels"), id="keys without places"),
        pytest.param(PLACED, "placed = pixels - sine_positions_2d", id="places taken away"),
        pytest.param("norm(pixels + self.dropout(attended))", "norm(self.dropout(attended))", id="without residual"),
        pytest.param(
            "norm(pixels + self.dropout(self.feed_forward(pixels)))",
            "norm(self.dropout(self.feed_forward(pixels)))",
            id="without second residual",
        ),
        pytest.param("pixels = self.self_attention_norm(", "pixels = (", id="without norm"),
        pytest.param("return self.feed_forward_norm(", "return (", id="without second norm"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_encoder_layer(old, new, monkeypatch):
    assert difference_of_layer(edited(vision_encoder, (old, new)), monkeypatch) > NOTICEABLE


class Levels(nn.Module):
    """Stands for a backbone: three drawn maps, whatever the picture."""

    channels, dtype = CHANNELS, torch.float64

    def forward(self, pixel_values, output_attentions=False):
        maps = [draw(N, c, IMAGE // s, IMAGE // s, seed=c) for c, s in zip(CHANNELS, (8, 16, 32), strict=True)]
        return types.SimpleNamespace(feature_maps=maps)


def at_stride_by_hand(level, stride, target):
    """One map (h, w): the mean of each block, the map itself, or a bilinear enlargement."""
    if stride > target:
        return resized_by_hand(level, len(level) * stride // target)
    ratio = target // stride
    places = [range(start, start + ratio) for start in range(0, len(level), ratio)]
    return np.array([[np.mean(level[np.ix_(rows, columns)]) for columns in places] for rows in places])


def difference_of_fusion(module, monkeypatch, feature_stride=16):
    loader = types.SimpleNamespace(from_config=lambda config, dtype: Levels())
    monkeypatch.setattr(module, "AutoBackbone", loader)
    encoder = drawn(module.VisionEncoder(PreTrainedConfig(), C, feature_stride)).eval()
    weights, levels = weights_of(encoder), Levels()(None).feature_maps
    convolved = []
    for n in range(N):
        maps = [
            at_stride_by_hand(channel.numpy(), stride, feature_stride)
            for level, stride in zip(levels, (8, 16, 32), strict=True)
            for channel in level[n]
        ]
        kernels = weights["fusion.weight"][..., 0, 0]
        convolved.append([sum(w * m for w, m in zip(row, maps, strict=True)) for row in kernels])
    normed = np.maximum(batch_norm_2d_by_hand(np.array(convolved), under(weights, "fusion_norm"), False), 0)
    ours = encoder(torch.zeros(N, 3, IMAGE, IMAGE))
    return distance(list(ours.detach()), [image.reshape(C, -1).T for image in normed])


@pytest.mark.parametrize("feature_stride", [16, 8])
def test_three_levels_become_one_map_by_averages_interpolation_and_a_convolution(feature_stride, monkeypatch):
    assert difference_of_fusion(vision_encoder, monkeypatch, feature_stride) < TOLERANCE


FUSED = "self.fusion_norm(self.fusion(torch.cat(maps, dim=1))).relu()"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(FUSED, FUSED.replace(".relu()", ""), id="without ReLU"),
        pytest.param(FUSED, FUSED.replace("self.fusion_norm", ""), id="without BN"),
        pytest.param("torch.cat(maps, dim=1)", "torch.cat(maps[::-1], dim=1)", id="levels the other way round"),
        pytest.param("F.avg_pool2d(level", "F.max_pool2d(level", id="maxima"),
        pytest.param('mode="bilinear", align_corners=False', 'mode="nearest"', id="nearest"),
        pytest.param("align_corners=False", "align_corners=True", id="corners aligned"),
        pytest.param("fused.flatten(2).mT", "fused.mT.flatten(2).mT", id="rows for columns"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_fusion(old, new, monkeypatch):
    assert difference_of_fusion(edited(vision_encoder, (old, new)), monkeypatch) > NOTICEABLE


def test_maps_that_timm_s_swin_gives_with_channels_last_are_turned():
    config = TimmBackboneConfig(
        backbone="swin_tiny_patch4_window7_224", out_indices=[1, 2, 3], use_pretrained_backbone=False
    )
    encoder = VisionEncoder(config, 32, 16).eval()
    images = draw(1, 3, 224, 224).float()
    with torch.no_grad():
        levels = [level.movedim(-1, 1) for level in encoder.backbone(images).feature_maps]
        assert [level.shape[1] for level in levels] == encoder.backbone.channels
        maps = [to_stride(level, stride, 16) for level, stride in zip(levels, (8, 16, 32), strict=True)]
        expected = encoder.fusion_norm(encoder.fusion(torch.cat(maps, dim=1))).relu().flatten(2).mT
        assert torch.equal(encoder(images), expected)
