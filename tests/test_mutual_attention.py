import numpy as np
import pytest
import torch
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
from test_word_batch_norm import by_hand as batch_norm_by_hand

from m3dec import grids, mutual_attention
from m3dec.grids import gather_for_filters, resize_filters
from m3dec.mutual_attention import MutualAttention

N, T, P, C = 3, 5, 7, 11
NUM_WORDS = [5, 2, 3]
WORD_MASK = first_words(NUM_WORDS, T)
ALL_PIXELS = torch.ones(N, P, dtype=torch.bool)
SOME_PIXELS = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
VARIANTS = ["shared", "independent", "language_attended_vision", "vision_attended_language"]


def linear_by_hand(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def by_hand(words, pixels, places, weights, variant, training):
    """Eqs. 1 to 2b and F_mul, for N expressions `words` (T_n, C) about `pixels` (P_n, C), with nothing padded.

    `places` says which channel of the last layer each pixel belongs to. Gives what M3Att does, (T_n, C) each, or
    (P_n, C) for VAL only, and A_mut, (T_n, P_n) each.
    """
    outputs, matrices = [], []
    for w, v, place in zip(words, pixels, places, strict=True):
        num_words, num_pixels = len(w), len(v)
        word_key, pixel_key = linear_by_hand(w, weights, "word_key"), linear_by_hand(v, weights, "pixel_key")
        a = [
            [word_key[t] @ pixel_key[p] / np.sqrt(len(w[t])) for p in range(num_pixels)] for t in range(num_words)
        ]  # Eq. 1
        matrices.append(np.array(a))
        e = second = np.exp(a)
        if variant == "independent":
            word_key = linear_by_hand(w, weights, "second_word_key")
            pixel_key = linear_by_hand(v, weights, "second_pixel_key")
            a = [[word_key[t] @ pixel_key[p] / np.sqrt(len(w[t])) for p in range(num_pixels)] for t in range(num_words)]
            second = np.exp(a)

        if variant != "vision_attended_language":  # Eq. 2a
            value = linear_by_hand(v, weights, "pixel_value")
            lav = [sum(e[t, p] * value[p] for p in range(num_pixels)) / sum(e[t]) for t in range(num_words)]
        if variant != "language_attended_vision":  # Eq. 2b
            value = linear_by_hand(w, weights, "word_value")
            val = [
                sum(second[t, p] * value[t] for t in range(num_words)) / sum(second[:, p]) for p in range(num_pixels)
            ]

        if variant == "language_attended_vision":
            outputs.append(linear_by_hand(np.array(lav), weights, "output"))
        elif variant == "vision_attended_language":
            outputs.append(linear_by_hand(np.array(val), weights, "output"))
        else:
            weight, bias = weights["output.weight"], weights["output.bias"]
            outputs.append(
                np.array(
                    [
                        bias + sum(lav[t] @ val[p] * weight[:, place[p]] for p in range(num_pixels))
                        for t in range(num_words)
                    ]
                )
            )
    normed = batch_norm_by_hand(outputs, under(weights, "norm"), training)
    return [np.maximum(rows, 0) for rows in normed], matrices


def difference(module, variant="shared", training=False, pixel_mask=None):
    """How far M3Att is from the oracle: its output and A_mut where words and pixels are real."""
    attention = drawn(module.MutualAttention(C, P, variant)).train(training)
    words, pixels, weights = draw(N, T, C), draw(N, P, C, seed=2), weights_of(attention)
    fused, scores = attention(words, pixels, WORD_MASK, pixel_mask)
    seen = ALL_PIXELS if pixel_mask is None else pixel_mask
    ours = real_rows(fused, seen if variant == "vision_attended_language" else WORD_MASK)
    ours += [matrix[:t, mask].detach() for matrix, t, mask in zip(scores, NUM_WORDS, seen, strict=True)]
    places = [mask.nonzero()[:, 0].tolist() for mask in seen]
    expected, matrices = by_hand(
        real_rows(words, WORD_MASK), real_rows(pixels, seen), places, weights, variant, training
    )
    return distance(ours, expected + matrices)


@pytest.mark.parametrize("pixel_mask", [None, SOME_PIXELS], ids=["all pixels", "masked pixels"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_mutual_attention_is_equations_1_to_2b(variant, training, pixel_mask):
    assert difference(mutual_attention, variant, training, pixel_mask) < TOLERANCE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("self.scale = hidden_size**-0.5", "self.scale = 1.0", id="Eq. 1 without scale"),
        pytest.param("self.scale = hidden_size**-0.5", "self.scale = 1 / hidden_size", id="Eq. 1 scaled by 1 / C"),
        pytest.param(
            "scores = self.scale * self.word_key(words) @ self.pixel_key(pixels).mT",
            "scores = self.scale * self.pixel_key(words) @ self.word_key(pixels).mT",
            id="Eq. 1 operands swapped",
        ),
        pytest.param("lowest).softmax(dim=-1)", "lowest).softmax(dim=-2)", id="Eq. 2a over words"),
        pytest.param("attention @ self.pixel_value(", "attention @ self.pixel_key(", id="Eq. 2a keys for values"),
        pytest.param("attention @ self.pixel_value(pixels)", "attention @ pixels", id="Eq. 2a bare pixels"),
        pytest.param("scores.mT.softmax(dim=-1)", "scores.mT.softmax(dim=-2)", id="Eq. 2b over pixels"),
        pytest.param("scores.mT.softmax(dim=-1)", "scores.softmax(dim=-1).mT", id="Eq. 2b transposed too late"),
        pytest.param("@ self.word_value(words)", "@ self.word_key(words)", id="Eq. 2b keys for values"),
        pytest.param(
            "scores = scores.masked_fill(~word_mask[:, :, None], torch.finfo(scores.dtype).min)",
            "pass",
            id="Eq. 2b without mask",
        ),
        pytest.param(
            "attended_pixels @ attended_words.mT", "attended_pixels @ pixels.mT", id="F_mul with the pixels for VAL"
        ),
        pytest.param(
            "attended_pixels @ attended_words.mT", "words @ attended_words.mT", id="F_mul with the words for LAV"
        ),
        pytest.param("fused = attended_pixels", "fused = self.scale * attended_pixels", id="F_mul scaled"),
        pytest.param(
            "output = self.output(gather_for_filters(fused, self.num_pixels))",
            "output = self.output(gather_for_filters(fused, self.num_pixels)) - self.output.bias",
            id="output without bias",
        ),
        pytest.param(
            "self.norm(output, word_mask).relu(), scores", "self.norm(output, word_mask), scores", id="without ReLU"
        ),
        pytest.param("self.norm(output, word_mask).relu(), scores", "output.relu(), scores", id="without BN"),
        pytest.param(
            "self.norm(output, word_mask).relu(), scores",
            "words + self.norm(output, word_mask).relu(), scores",
            id="a residual",
        ),
        pytest.param(
            "self.norm(output, word_mask).relu(), scores",
            "self.norm(output, word_mask).relu(), scores.softmax(-1)",
            id="A_mut after the softmax",
        ),
    ],
)
def test_the_oracle_notices_a_mistake_in_m3att(old, new):
    assert difference(edited(mutual_attention, (old, new))) > NOTICEABLE


@pytest.mark.parametrize(
    ("variant", "training", "pixel_mask", "old", "new"),
    [
        pytest.param(
            "independent",
            False,
            None,
            "self.scale * self.second_word_key(words) @ self.second_pixel_key(pixels).mT",
            "scores",
            id="independent matrices shared",
        ),
        pytest.param(
            "independent",
            False,
            None,
            "second_scores = self.scale * self.second_word_key",
            "second_scores = self.second_word_key",
            id="second matrix without scale",
        ),
        pytest.param(
            "independent",
            False,
            None,
            "self._look_at_words(second_scores, words",
            "self._look_at_words(scores, words",
            id="second matrix not used",
        ),
        pytest.param(
            "shared",
            False,
            SOME_PIXELS,
            "attention = scores.masked_fill(~pixel_mask[:, None, :], lowest)",
            "attention = scores",
            id="Eq. 2a without pixel mask",
        ),
        pytest.param(
            "shared",
            False,
            SOME_PIXELS,
            "fused = fused.masked_fill(~pixel_mask[:, None, :], 0.0)",
            "pass",
            id="F_mul without pixel mask",
        ),
        pytest.param(
            "shared",
            True,
            None,
            "self.norm(output, word_mask)",
            "self.norm(output, torch.ones_like(word_mask))",
            id="BN over padding",
        ),
        pytest.param(
            "vision_attended_language",
            True,
            SOME_PIXELS,
            "self.norm(self.output(attended_words), pixel_mask)",
            "self.norm(self.output(attended_words), torch.ones_like(pixel_mask))",
            id="VAL only, BN over padding",
        ),
        pytest.param(
            "vision_attended_language",
            False,
            None,
            "self.norm(self.output(attended_words), pixel_mask).relu()",
            "self.norm(self.output(attended_words), pixel_mask)",
            id="VAL only, without ReLU",
        ),
        pytest.param(
            "vision_attended_language",
            False,
            None,
            "scores = scores.masked_fill(~word_mask[:, :, None], torch.finfo(scores.dtype).min)",
            "pass",
            id="VAL only, without mask",
        ),
        pytest.param(
            "language_attended_vision",
            False,
            None,
            "self.norm(self.output(attended_pixels), word_mask).relu()",
            "self.norm(self.output(attended_pixels), word_mask)",
            id="LAV only, without ReLU",
        ),
        pytest.param(
            "language_attended_vision",
            False,
            None,
            "self.norm(self.output(attended_pixels), word_mask).relu()",
            "words + self.norm(self.output(attended_pixels), word_mask).relu()",
            id="LAV only, a residual",
        ),
        pytest.param(
            "language_attended_vision",
            True,
            None,
            "self.norm(self.output(attended_pixels), word_mask)",
            "self.norm(self.output(attended_pixels), torch.ones_like(word_mask))",
            id="LAV only, BN over padding",
        ),
    ],
)
def test_the_oracle_notices_a_mistake_in_a_variant(variant, training, pixel_mask, old, new):
    assert difference(edited(mutual_attention, (old, new)), variant, training, pixel_mask) > NOTICEABLE


@pytest.mark.parametrize(
    ("variant", "absent"),
    [
        ("shared", {"second_word_key", "second_pixel_key"}),
        ("independent", set()),
        ("language_attended_vision", {"second_word_key", "second_pixel_key", "word_value"}),
        ("vision_attended_language", {"second_word_key", "second_pixel_key", "pixel_value"}),
    ],
)
def test_layers_that_a_variant_does_not_use_do_not_exist_in_it(variant, absent):
    layers = {"word_key", "pixel_key", "word_value", "pixel_value", "second_word_key", "second_pixel_key"}
    assert {name for name, _ in MutualAttention(C, P, variant).named_children()} == layers - absent | {"output", "norm"}


SIDE = 5  # of the grid that the last layer is made for


def resized_by_hand(image, new_side):
    """A square `image` bilinearly at another size. Each new pixel looks through a tent around its centre.

    The tent is one old pixel wide to either side, or, when shrinking (antialias), one new pixel. What of it falls
    outside the image is shared among what does not.
    """
    ratio = len(image) / new_side
    tents = []
    for place in range(new_side):
        centre = (place + 0.5) * ratio - 0.5
        tent = [max(0.0, 1 - abs(old - centre) / max(ratio, 1)) for old in range(len(image))]
        tents.append(np.array(tent) / sum(tent))
    return np.array([[tents[y] @ image @ tents[x] for x in range(new_side)] for y in range(new_side)])


def resampled_by_hand(weight, new_side):
    """A last layer's weight (C, P) for another grid: resized, times the constant P / P_new."""
    side = int(np.sqrt(weight.shape[1]))
    grids = [resized_by_hand(row.reshape(side, side), new_side).ravel() * side**2 / new_side**2 for row in weight]
    return np.array(grids)


def grid_difference(new_side):
    """How far M3Att is from the oracle, whose last layer is resized, on a grid it was not made for."""
    attention = drawn(MutualAttention(C, SIDE**2)).eval()
    words, pixels, weights = draw(N, T, C), draw(N, new_side**2, C, seed=2), weights_of(attention)
    ours = real_rows(attention(words, pixels, WORD_MASK)[0], WORD_MASK)
    weights["output.weight"] = resampled_by_hand(weights["output.weight"], new_side)
    places = [range(new_side**2)] * N
    return distance(ours, by_hand(real_rows(words, WORD_MASK), pixels.numpy(), places, weights, "shared", False)[0])


@pytest.mark.parametrize("new_side", [2, 3, 5, 7, 11])
def test_on_another_grid_the_last_layer_is_resized_and_the_rest_is_the_same_equations(new_side):
    assert grid_difference(new_side) < TOLERANCE


@pytest.mark.parametrize(
    ("new_side", "old", "new"),
    [
        pytest.param(7, " * (num_pixels / maps.shape[-1])", "", id="growing, sum not kept"),
        pytest.param(3, " * (num_pixels / maps.shape[-1])", "", id="shrinking, sum not kept"),
        pytest.param(7, "(num_pixels / maps.shape[-1])", "(maps.shape[-1] / num_pixels)", id="constant inverted"),
        pytest.param(7, "(num_pixels / maps.shape[-1])", "(trained / side)", id="constant of sides"),
        pytest.param(7, "= resizing.mT @", "= (resizing / resizing.sum(0)).mT @", id="a mean over each pixel's share"),
        pytest.param(3, "antialias=shrinks", "antialias=False", id="shrinking without antialias"),
        pytest.param(7, "align_corners=False", "align_corners=True", id="corners aligned"),
        pytest.param(7, 'mode="bilinear"', 'mode="bicubic"', id="bicubic"),
        pytest.param(7, "gathered.flatten(-2)", "gathered.mT.flatten(-2)", id="rows for columns"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_resampling(new_side, old, new, monkeypatch):
    monkeypatch.setattr(mutual_attention, "gather_for_filters", edited(grids, (old, new)).gather_for_filters)
    assert grid_difference(new_side) > NOTICEABLE


@pytest.mark.parametrize("new_side", [2, 3, 7, 11])
def test_in_float32_the_resampled_weight_is_the_oracle_to_float32(new_side):
    weight = draw(C, SIDE**2).float()
    expected = resampled_by_hand(weight.double().numpy(), new_side)
    assert distance([resize_filters(weight, new_side**2)], [expected]) < 1e-6


@pytest.mark.parametrize("new_side", [2, 3, 7, 11])
def test_under_a_constant_filter_a_constant_f_mul_keeps_its_sum_on_every_grid(new_side):
    weight = torch.linspace(-1, 1, C)[:, None].expand(C, SIDE**2).contiguous()
    torch.testing.assert_close(resize_filters(weight, new_side**2).sum(dim=1), weight.sum(dim=1))


@pytest.mark.parametrize("factor", [2, 3])
def test_on_a_grid_so_many_times_finer_a_constant_f_mul_keeps_its_sum_under_any_filter(factor):
    weight = draw(C, SIDE**2).float()
    finer = resize_filters(weight, (factor * SIDE) ** 2)
    torch.testing.assert_close(finer.sum(dim=1), weight.sum(dim=1), rtol=1e-5, atol=1e-5)


def test_at_the_trained_size_f_mul_is_not_touched_and_a_grid_that_is_no_square_is_refused():
    fused = draw(N, T, SIDE**2)
    assert gather_for_filters(fused, SIDE**2) is fused
    with pytest.raises(ValueError, match=r"made for 25 pixels and got 26\. .* square grid"):
        gather_for_filters(draw(N, T, 26), SIDE**2)


@pytest.mark.parametrize("new_side", [2, 3, 7, 11])
def test_made_for_another_grid_the_layer_gives_there_what_it_gave_before(new_side):
    attention = drawn(MutualAttention(C, SIDE**2)).float().eval()
    inputs = draw(N, T, C).float(), draw(N, new_side**2, C, seed=2).float(), WORD_MASK
    before, _ = attention(*inputs)
    attention.set_num_pixels(new_side**2)
    torch.testing.assert_close(attention(*inputs)[0], before, rtol=1e-5, atol=1e-5)
