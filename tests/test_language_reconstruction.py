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
from test_mutual_attention import linear_by_hand
from test_word_batch_norm import by_hand as batch_norm_by_hand

from m3dec import language_reconstruction, positions
from m3dec.language_reconstruction import LanguageReconstruction

N, T, C = 3, 7, 2 * 5  # sines and cosines take turns, so C is even
NUM_WORDS = [7, 2, 3]
MASK = first_words(NUM_WORDS, T)

# The model's positions are float32; the same lines in float64 can be held against the oracle to 1e-10.
IN_FLOAT64 = [
    ("(0, channels, 2, device=device, dtype=torch.float32)", "(0, channels, 2, device=device, dtype=torch.float64)"),
    ("(length, device=device, dtype=torch.float32)", "(length, device=device, dtype=torch.float64)"),
]


def positions_by_hand(length, channels):
    """e: wave number i turns 10000^(-2i/C) radians a word; its sine is channel 2i and its cosine channel 2i + 1."""
    e = np.zeros((length, channels))
    for place in range(length):
        for i in range(channels // 2):
            angle = place / 10000 ** (2 * i / channels)
            e[place, 2 * i], e[place, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return e


def by_hand(words, sentences, decoded, weights, training, normalized=True):
    """Eq. 4 and Fig. 5 for N expressions F_t and F_dec, (T_n, C) each, and F_t', (1, C): F_proj, F_rec and the loss."""
    projected = []
    for expression, sentence in zip(words, sentences, strict=True):
        num_words, channels = expression.shape
        rows = [*(expression + positions_by_hand(num_words, channels)), *sentence]  # T_n + 1 of them
        w_proj = weights["projection.weight"].T
        projected.append(sum(np.maximum(row @ w_proj, 0) for row in rows) / (num_words + 1))  # Eq. 4
    hidden = decoded
    for name in ("first", "second", "third"):
        hidden = [linear_by_hand(rows, weights, name) for rows in hidden]
        if name != "third" or normalized:
            normed = batch_norm_by_hand(hidden, under(weights, f"{name}_norm"), training)
            hidden = [np.maximum(rows, 0) for rows in normed]
    reconstructed = [sum(rows) / len(rows) for rows in hidden]
    loss = np.mean((np.array(projected) - np.array(reconstructed)) ** 2)
    return np.array(projected), np.array(reconstructed), loss


def inputs():
    return draw(N, T, C), draw(N, 1, C, seed=2), draw(N, T, C, seed=3)


def difference(
    monkeypatch,
    module=language_reconstruction,
    training=True,
    mistakes_of_positions=(),
    detached=False,
    normalized=True,
):
    """How far LFR is from the oracle, in F_proj, F_rec and the loss."""
    in_float64 = edited(positions, *IN_FLOAT64, *mistakes_of_positions)
    monkeypatch.setattr(module, "sine_positions", in_float64.sine_positions)
    network = drawn(module.LanguageReconstruction(C, detached, normalized)).train(training)
    words, sentence, decoded = inputs()
    weights = weights_of(network)
    ours = [
        network.project(words, sentence, MASK),
        network.reconstruct(decoded, MASK),
        network(words, sentence, decoded, MASK),
    ]
    expected = by_hand(
        real_rows(words, MASK), sentence.numpy(), real_rows(decoded, MASK), weights, training, normalized
    )
    return distance([tensor.detach() for tensor in ours], expected)


@pytest.mark.parametrize("detached", [False, True], ids=["joint", "detached"])
@pytest.mark.parametrize("normalized", [False, True], ids=["linear", "normalized"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_language_reconstruction_is_equation_4_and_fig_5(training, normalized, detached, monkeypatch):
    assert difference(monkeypatch, training=training, detached=detached, normalized=normalized) < TOLERANCE


@pytest.mark.parametrize(
    ("training", "old", "new"),
    [
        pytest.param(False, "sentence], dim=1)", "0 * sentence], dim=1)", id="without sentence"),
        pytest.param(
            False, "sentence], dim=1)", "sentence + positions[:1]], dim=1)", id="the sentence given a position"
        ),
        pytest.param(False, "[words + positions, sentence]", "[words, sentence]", id="without positions"),
        pytest.param(False, "sentence], dim=1)).relu()", "sentence], dim=1))", id="Eq. 4 without ReLU"),
        pytest.param(
            False,
            "_mean(projected, mask)",
            "_mean(projected, mask) * mask.sum(1, keepdim=True) / word_mask.sum(1, keepdim=True)",
            id="divided by T, not T + 1",
        ),
        pytest.param(
            False,
            "word_mask.new_ones(len(words), 1)",
            "word_mask.new_zeros(len(words), 1)",
            id="the sentence masked",
        ),
        pytest.param(False, "_mean(projected, mask)", "_mean(projected, mask | True)", id="Eq. 4 without mask"),
        pytest.param(
            False,
            "_mean(hidden, word_mask)",
            "_mean(hidden, word_mask | True)",
            id="Fig. 5 without mask",
        ),
        pytest.param(False, "rows.masked_fill(~mask[..., None], 0.0).sum", "rows.sum", id="sums without mask"),
        pytest.param(False, "mask.sum(dim=1, keepdim=True)", "mask.shape[1]", id="padding counted"),
        pytest.param(
            False, "self.first(decoded), word_mask).relu()", "self.first(decoded), word_mask)", id="first without ReLU"
        ),
        pytest.param(
            False, "self.second(hidden), word_mask).relu()", "self.second(hidden), word_mask)", id="second without ReLU"
        ),
        pytest.param(
            False,
            "self.third_norm(hidden, word_mask).relu()",
            "self.third_norm(hidden, word_mask)",
            id="third without ReLU",
        ),
        pytest.param(False, "hidden = self.third(hidden)", "", id="without third"),
        pytest.param(False, "self.third_norm(hidden, word_mask)", "hidden", id="third without BN"),
        pytest.param(
            False, "self.first_norm(self.first(decoded), word_mask)", "self.first(decoded)", id="first without BN"
        ),
        pytest.param(
            False, "self.second_norm(self.second(hidden), word_mask)", "self.second(hidden)", id="second without BN"
        ),
        pytest.param(False, "self.second(hidden)", "self.first(hidden)", id="first twice"),
        pytest.param(
            False, "self.reconstruct(decoded, word_mask)", "self.reconstruct(words, word_mask)", id="F_t for F_dec"
        ),
        pytest.param(False, "F.mse_loss(", "F.l1_loss(", id="not the square"),
        pytest.param(False, "else target)", "else target, reduction='sum')", id="a sum, not a mean"),
        pytest.param(
            True,
            "self.first(decoded), word_mask)",
            "self.first(decoded), word_mask | True)",
            id="first BN over padding",
        ),
        pytest.param(
            True,
            "self.second(hidden), word_mask)",
            "self.second(hidden), word_mask | True)",
            id="second BN over padding",
        ),
        pytest.param(
            True,
            "self.third_norm(hidden, word_mask)",
            "self.third_norm(hidden, word_mask | True)",
            id="third BN over padding",
        ),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_reconstruction(training, old, new, monkeypatch):
    assert difference(monkeypatch, edited(language_reconstruction, (old, new)), training) > NOTICEABLE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("[angles.sin(), angles.cos()]", "[angles.cos(), angles.sin()]", id="cosines first"),
        pytest.param(
            "[angles.sin(), angles.cos()], dim=-1).flatten(1)",
            "[angles.sin(), angles.cos()], dim=-2).flatten(1)",
            id="halves",
        ),
        pytest.param("10000 **", "1000 **", id="base"),
        pytest.param(" / channels)", " / (channels // 2))", id="exponent"),
        pytest.param("frequencies = 10000 ** (-", "frequencies = 10000 ** (", id="sign"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_positions(old, new, monkeypatch):
    assert difference(monkeypatch, mistakes_of_positions=[(old, new)]) > NOTICEABLE


@pytest.mark.parametrize(("length", "channels"), [(1, 2), (20, 256), (104, 10)])
def test_positions_are_the_formula_to_float32(length, channels):
    ours = positions.sine_positions(length, channels, torch.device("cpu"))
    assert ours.dtype == torch.float32
    assert distance([ours], [positions_by_hand(length, channels)]) < 1e-5


def test_a_pixel_s_position_is_that_of_its_row_beside_that_of_its_column():
    side, channels = 5, 12
    line, ours = (
        positions_by_hand(side, channels // 2),
        positions.sine_positions_2d(side, channels, torch.device("cpu")),
    )
    expected = [np.concatenate([line[y], line[x]]) for y in range(side) for x in range(side)]
    assert distance([ours], [np.array(expected)]) < 1e-5


@pytest.mark.parametrize("detached", [False, True], ids=["joint", "detached"])
def test_gradients_go_through_f_rec_always_and_through_f_proj_only_when_joint(detached, monkeypatch):
    """Against the oracle's own slopes: in `detached`, those with F_proj held still."""
    in_float64 = edited(positions, *IN_FLOAT64)
    monkeypatch.setattr(language_reconstruction, "sine_positions", in_float64.sine_positions)
    network = drawn(LanguageReconstruction(C, detached)).train()
    network.freeze_parameters()
    weights = weights_of(network)
    tensors = dict(zip(("words", "sentence", "decoded"), inputs(), strict=True))
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    tensors["projection.weight"] = network.projection.weight
    tensors["third.weight"] = network.third.weight
    network(tensors["words"], tensors["sentence"], tensors["decoded"], MASK).backward()

    def loss(name, step):
        arrays = {key: tensor.detach().numpy().copy() for key, tensor in tensors.items()}
        arrays[name] = arrays[name] + step
        words, decoded = (
            [rows[:t] for rows, t in zip(arrays[key], NUM_WORDS, strict=True)] for key in ("words", "decoded")
        )
        drawn_weights = weights | {key: arrays[key] for key in ("projection.weight", "third.weight")}
        return by_hand(words, arrays["sentence"], decoded, drawn_weights, training=True)[2]

    for name, tensor in tensors.items():
        if detached and name in ("words", "sentence", "projection.weight"):
            assert tensor.grad is None
            continue
        direction = draw(*tensor.shape, seed=5).numpy()
        slope = (loss(name, 1e-6 * direction) - loss(name, -1e-6 * direction)) / 2e-6
        assert abs(slope) > 1e-3
        assert (tensor.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-6)


def test_detached_w_proj_is_fixed_and_saved_and_joint_it_is_trained():
    detached, joint = LanguageReconstruction(C, detached=True), LanguageReconstruction(C)
    assert not detached.projection.weight.requires_grad
    assert joint.projection.weight.requires_grad
    assert "projection.weight" in detached.state_dict()


def test_what_stands_in_the_padding_changes_nothing():
    network = drawn(LanguageReconstruction(C)).train()
    words, sentence, decoded = inputs()
    others = [torch.where(MASK[..., None], feature, 1e3) for feature in (words, decoded)]
    assert torch.equal(network(words, sentence, decoded, MASK), network(others[0], sentence, others[1], MASK))
