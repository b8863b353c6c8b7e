import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import (
    NOTICEABLE,
    TOLERANCE,
    distance,
    draw,
    drawn,
    edited,
    first_words,
    real_rows,
    under,
    weights_of,
)
from test_decoder_layer import layer_norm_by_hand, multi_head_attention_by_hand
from test_mutual_attention import linear_by_hand, resized_by_hand
from torch import nn

from m3dec import grids, mask_decoder, multi_head_attention
from m3dec.mask_decoder import DoubledConvolution, MaskDecoder

N, T, SIDE, HEADS, C, MAX_WORDS, CHANNELS = 2, 7, 5, 2, 2 * 13, 11, 3
NUM_WORDS = [7, 3]
MASK = first_words(NUM_WORDS, T)
VARIANTS = ["dynamic_kernels", "concatenated", "decoder_only"]


def convolution_by_hand(maps, weight, bias):
    """A 3x3 convolution of `maps` (c, h, w), one place at a time, with a border of zeros: (o, h, w)."""
    _, height, width = maps.shape
    bordered = np.zeros((len(maps), height + 2, width + 2))
    bordered[:, 1:-1, 1:-1] = maps
    result = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for y in range(height):
            for x in range(width):
                result[o, y, x] = np.sum(weight[o] * bordered[:, y : y + 3, x : x + 3]) + bias[o]
    return result


def doubled_by_hand(maps):
    """Each pixel four times: (c, h, w) to (c, 2h, 2w)."""
    channels, height, width = maps.shape
    return np.array(
        [[[maps[c, y // 2, x // 2] for x in range(2 * width)] for y in range(2 * height)] for c in range(channels)]
    )


def batch_norm_2d_by_hand(batch, weights, training):
    """Batch normalization of N maps (c, h, w), channel by channel, over all their pixels."""
    normed = np.empty_like(batch)
    for c in range(batch.shape[1]):
        mean, variance = weights["running_mean"][c], weights["running_var"][c]
        if training:
            pixels = batch[:, c].ravel()
            mean = sum(pixels) / len(pixels)
            variance = sum((pixels - mean) ** 2) / len(pixels)
        normed[:, c] = (batch[:, c] - mean) / np.sqrt(variance + 1e-5) * weights["weight"][c] + weights["bias"][c]
    return normed


def first_maps_by_hand(words, pixels, weights, variant):
    """Table III: what one expression's words F_dec (T_n, C) and the pixels F_enc (P, C) give the convolutions."""
    attended, _ = multi_head_attention_by_hand(words, words, under(weights, "self_attention"), HEADS)
    kernels = layer_norm_by_hand(words + attended, under(weights, "self_attention_norm"))
    side = int(np.sqrt(len(pixels)))
    if variant == "concatenated":
        rows = [np.concatenate([sum(kernels), pixel]) for pixel in pixels]
        return np.array([[rows[y * side + x] for x in range(side)] for y in range(side)]).transpose(2, 0, 1)
    maps = np.zeros((MAX_WORDS, side, side))  # channel t belongs to word t; the others stay 0
    for t, kernel in enumerate(kernels):
        if variant == "dynamic_kernels":  # a 1x1 convolution whose kernel is the word
            maps[t] = [[kernel @ pixels[y * side + x] for x in range(side)] for y in range(side)]
        else:  # VLT's: the word alone draws a map of the trained grid
            drawn_map = linear_by_hand(kernel, weights, "word_maps")
            trained = int(np.sqrt(len(drawn_map)))
            maps[t] = resized_by_hand(drawn_map.reshape(trained, trained), side)
    return maps


def by_hand(words, pixels, weights, variant, num_upsamplings, training):
    """Fig. 6 for N expressions: logits (N, h, w)."""
    maps = np.array([first_maps_by_hand(w, p, weights, variant) for w, p in zip(words, pixels, strict=True)])
    doubles = {0: (0, 0, 0), 1: (0, 0, 1), 2: (0, 1, 1), 3: (1, 1, 1)}[num_upsamplings]  # the gaps, first to last
    for i in range(3):
        convolved = [convolution_by_hand(m, weights[f"convolutions.{i}.weight"], np.zeros(CHANNELS)) for m in maps]
        maps = np.maximum(batch_norm_2d_by_hand(np.array(convolved), under(weights, f"norms.{i}"), training), 0)
        if doubles[i]:
            maps = np.array([doubled_by_hand(m) for m in maps])
    weight, bias = weights["last_convolution.weight"], weights["last_convolution.bias"]
    return np.array([convolution_by_hand(m, weight, bias)[0] for m in maps])


def difference(module, variant="dynamic_kernels", num_upsamplings=1, training=False, side=SIDE, eager=False):
    """How far the logits are from the oracle's."""
    network = drawn(module.MaskDecoder(C, SIDE**2, HEADS, MAX_WORDS, CHANNELS, num_upsamplings, variant))
    network.train(training)
    decoded, pixels, weights = draw(N, T, C), draw(N, side**2, C, seed=2), weights_of(network)
    logits = network(decoded, pixels, MASK, eager).detach().numpy()
    expected = by_hand(real_rows(decoded, MASK), pixels.numpy(), weights, variant, num_upsamplings, training)
    assert all(np.ptp(logits_of_one) > 0.1 for logits_of_one in expected)  # the ReLUs have left something to compare
    return distance(logits, expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("num_upsamplings", [0, 1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mask_decoder_is_fig_6_and_its_variants_are_the_rows_of_table_iii(variant, num_upsamplings, training):
    assert difference(mask_decoder, variant, num_upsamplings, training) < TOLERANCE


@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_another_grid_vlt_s_maps_are_resized_and_the_rest_is_the_same(variant, side, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # its cast to float32 is one to float64 here
    assert difference(mask_decoder, variant, 0, side=side) < TOLERANCE


def test_plain_products_on_request_give_the_same_logits():
    assert difference(mask_decoder, eager=True) < TOLERANCE


NORMED = "kernels = self.self_attention_norm(decoded + attended)"
SILENCED = "kernels = kernels.masked_fill(~word_mask[..., None], 0.0)"
DOUBLED = "maps = convolution(maps, doubled=False)"
NORM_AND_RELU = "maps = norm(maps).relu()"
LAST = "return maps.squeeze(1)  # (N, h, w)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            "(decoded, decoded, decoded, word_mask",
            "(decoded, decoded, decoded, None",
            id="self-attention without mask",
        ),
        pytest.param(NORMED, "kernels = self.self_attention_norm(decoded)", id="without self-attention"),
        pytest.param(NORMED, "kernels = self.self_attention_norm(attended)", id="without residual"),
        pytest.param(NORMED, "kernels = decoded + attended", id="without norm"),
        pytest.param(SILENCED, "pass", id="bias left on padded kernels"),
        pytest.param(
            NORMED,
            NORMED.replace("decoded + attended", "(decoded + attended).masked_fill(~word_mask[..., None], 0.0)")
            + "; word_mask = word_mask | True",
            id="padding silenced before the norm",
        ),
        pytest.param(
            "maps = kernels @ pixels.mT", "maps = kernels @ pixels.mT * pixels.shape[-1] ** -0.5", id="kernels scaled"
        ),
        pytest.param(
            "maps = kernels @ pixels.mT", "maps = (kernels @ pixels.mT).relu()", id="a ReLU after the kernels"
        ),
        pytest.param(
            "maps = kernels @ pixels.mT", "maps = (pixels @ kernels.mT).softmax(-1).mT", id="a softmax over words"
        ),
        pytest.param(
            "maps = kernels @ pixels.mT",
            "maps = (kernels @ pixels.mT).unflatten(-1, (side, side)).mT.flatten(-2)",
            id="rows for columns",
        ),
        pytest.param(
            "(0, 0, 0, self.max_words - num_words)", "(0, 0, self.max_words - num_words, 0)", id="words at the end"
        ),
        pytest.param(NORM_AND_RELU, "maps = norm(maps)", id="without ReLU"),
        pytest.param(NORM_AND_RELU, "maps = maps.relu()", id="without BN"),
        pytest.param(NORM_AND_RELU, "maps = norm(maps.relu())", id="ReLU before BN"),
        pytest.param(LAST, "return -maps.squeeze(1)", id="sign"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_mask_decoder(old, new):
    assert difference(edited(mask_decoder, (old, new))) > NOTICEABLE


SENTENCE = "sentence = kernels.sum(dim=1, keepdim=True).expand_as(pixels)"
WORD_MAPS, SILENT_MAPS = "self.word_maps(kernels)", "maps = maps.masked_fill(~word_mask[..., None], 0.0)"


@pytest.mark.parametrize(
    ("variant", "old", "new"),
    [
        pytest.param("concatenated", SENTENCE, SENTENCE.replace("sum", "mean"), id="concatenated, a mean"),
        pytest.param(
            "concatenated",
            SENTENCE,
            SENTENCE.replace("kernels.sum(dim=1, keepdim=True)", "kernels[:, :1]"),
            id="concatenated, the first word",
        ),
        pytest.param("concatenated", "[sentence, pixels]", "[pixels, sentence]", id="concatenated, swapped"),
        pytest.param("concatenated", SILENCED, "pass", id="concatenated, padding summed"),
        pytest.param(
            "concatenated",
            "pixels], dim=-1).mT.unflatten(-1, (side, side))",
            "pixels], dim=-1).mT.unflatten(-1, (side, side)).mT",
            id="concatenated, rows for columns",
        ),
        pytest.param("decoder_only", SILENT_MAPS, "pass", id="VLT's, bias left on padding"),
        pytest.param("decoder_only", SILENT_MAPS, f"{SILENT_MAPS}.relu()", id="VLT's, a ReLU"),
        pytest.param("decoder_only", WORD_MAPS, "self.word_maps(kernels.roll(1, 1))", id="VLT's, another word's map"),
    ],
)
def test_the_oracle_notices_a_mistake_in_a_row_of_table_iii(variant, old, new):
    assert difference(edited(mask_decoder, (old, new)), variant) > NOTICEABLE


@pytest.mark.parametrize(
    ("num_upsamplings", "old", "new"),
    [
        pytest.param(
            2, "number > self.upsample_from", "0 < number <= 3 - self.upsample_from", id="counted from the first"
        ),
        pytest.param(
            3,
            DOUBLED,
            "maps = F.conv2d(maps, convolution.weight, convolution.bias, padding=1).repeat_interleave(2, -1)"
            ".repeat_interleave(2, -2); maps = maps if norm is None else norm(maps).relu(); continue",
            id="doubled after the convolution",
        ),
        pytest.param(2, DOUBLED, "maps = convolution(maps.mT, doubled=False)", id="columns doubled as rows"),
        pytest.param(0, LAST, "return maps.relu().squeeze(1)", id="a last ReLU"),
        pytest.param(1, "4 * F.avg_pool2d", "F.avg_pool2d", id="a mean of the copies' weights"),
        pytest.param(1, "weight.flip(2, 3)", "weight", id="kernel not turned round"),
        pytest.param(1, "weight.flip(2, 3)", "weight.flip(2, 3).mT", id="rows for columns of the kernel"),
        pytest.param(1, "(self.weight), self.bias", "(self.weight), None", id="without bias"),
        pytest.param(1, "stride=2, padding=1)", "stride=2, padding=1).roll(1, -1)", id="one place aside"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_upsampling(num_upsamplings, old, new):
    assert difference(edited(mask_decoder, (old, new)), num_upsamplings=num_upsamplings) > NOTICEABLE


@pytest.mark.parametrize(
    ("side", "old", "new"),
    [
        pytest.param(3, "antialias=shrinks", "antialias=False", id="shrinking without antialias"),
        pytest.param(7, "align_corners=False", "align_corners=True", id="corners aligned"),
        pytest.param(7, "(-1, 1, trained, trained)", "(-1, 1, trained, trained).mT", id="rows for columns"),
        pytest.param(
            7, "return _interpolate(grid", "return (trained / side) ** 2 * _interpolate(grid", id="a constant of sums"
        ),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_resizing_of_vlt_s_maps(side, old, new, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(mask_decoder, "resize_maps", edited(grids, (old, new)).resize_maps)
    assert difference(mask_decoder, "decoder_only", 0, side=side) > NOTICEABLE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("query * query.shape[-1] ** -0.5 @", "query @", id="without scale"),
        pytest.param("weights = scores.softmax(dim=-1)", "weights = scores.softmax(dim=-2)", id="softmax over queries"),
        pytest.param("if mask is not None:", "if False:", id="without mask"),
    ],
)
def test_the_oracle_notices_a_mistake_in_its_attention_heads(old, new, monkeypatch):
    mutant = edited(multi_head_attention, (old, new))
    monkeypatch.setattr(mask_decoder, "MultiHeadAttention", mutant.MultiHeadAttention)
    assert difference(mask_decoder) > NOTICEABLE


@pytest.mark.parametrize(("channels", "outputs", "height", "width"), [(3, 1, 5, 7), (2, 3, 7, 2), (5, 1, 1, 1)])
def test_a_doubled_convolution_is_the_plain_one_of_a_map_with_each_pixel_four_times(channels, outputs, height, width):
    convolution = drawn(DoubledConvolution(channels, outputs, 3, padding=1))
    maps, weights = draw(2, channels, height, width), weights_of(convolution)
    expected = [convolution_by_hand(doubled_by_hand(m), weights["weight"], weights["bias"]) for m in maps.numpy()]
    doubled = F.interpolate(maps, scale_factor=2.0)
    assert distance(convolution(doubled).detach(), expected) < TOLERANCE
    assert distance(convolution(maps, doubled=False).detach(), expected) < TOLERANCE
    assert distance(nn.Conv2d.forward(convolution, doubled).detach(), expected) < TOLERANCE


def test_an_adapter_around_a_convolution_reads_the_doubled_map():
    """An adapter's own 3x3 convolution runs beside the convolution, on the same map, and their outputs are added."""
    network = drawn(MaskDecoder(C, SIDE**2, HEADS, MAX_WORDS, CHANNELS, num_upsamplings=2)).eval()
    inputs = draw(N, T, C), draw(N, SIDE**2, C, seed=2), MASK
    plain, seen = network(*inputs), []
    network.convolutions[2] = nn.Sequential(network.convolutions[2])
    network.convolutions[2].register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    assert torch.equal(network(*inputs), plain)
    (doubled, output) = seen[0]
    assert doubled.shape[-2:] == output.shape[-2:]
    assert torch.equal(doubled, F.interpolate(doubled[..., ::2, ::2], scale_factor=2.0))


def test_maps_of_padded_words_are_zero_in_every_row_of_table_iii_that_has_them():
    for variant in ("dynamic_kernels", "decoder_only"):
        network = drawn(MaskDecoder(C, SIDE**2, HEADS, MAX_WORDS, CHANNELS, variant=variant)).eval()
        seen = []
        network.convolutions[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        network(draw(N, T, C), draw(N, SIDE**2, C, seed=2), MASK)
        real = first_words(NUM_WORDS, MAX_WORDS)
        assert (seen[0][~real] == 0).all()
        assert seen[0][real].flatten(1).any(dim=1).all()
