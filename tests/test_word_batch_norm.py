import numpy as np
import pytest
import torch
from mutants import NOTICEABLE, TOLERANCE, distance, draw, drawn, edited, first_words, real_rows, weights_of
from torch import nn

from m3dec import word_batch_norm
from m3dec.word_batch_norm import WordBatchNorm

N, T, C = 3, 7, 5
NUM_WORDS = [7, 2, 3]
MASK = first_words(NUM_WORDS, T)


def by_hand(expressions, weights, training):
    """Batch normalization of N arrays (T_n, C), whose rows are one batch, channel by channel."""
    rows = np.concatenate(expressions)
    normed = np.empty_like(rows)
    for c in range(rows.shape[1]):
        mean, variance = weights["norm.running_mean"][c], weights["norm.running_var"][c]
        if training:
            mean = sum(rows[:, c]) / len(rows)
            variance = sum((rows[:, c] - mean) ** 2) / len(rows)
        normed[:, c] = (rows[:, c] - mean) / np.sqrt(variance + 1e-5)
        normed[:, c] = normed[:, c] * weights["norm.weight"][c] + weights["norm.bias"][c]
    return np.split(normed, np.cumsum([len(expression) for expression in expressions])[:-1])


def statistics_by_hand(expressions, weights):
    """The running statistics after one training step: a tenth of the batch's, with the unbiased variance."""
    rows = np.concatenate(expressions)
    mean = sum(rows) / len(rows)
    variance = sum((rows - mean) ** 2) / (len(rows) - 1)
    return (
        0.9 * weights["norm.running_mean"] + 0.1 * mean,
        0.9 * weights["norm.running_var"] + 0.1 * variance,
    )


def difference(module, training):
    """How far one step of the model is from the oracle: real rows, padded rows of training, running statistics."""
    network = drawn(module.WordBatchNorm(C)).train(training)
    words, weights = draw(N, T, C), weights_of(network)
    real = real_rows(words, MASK)
    normed = network(words, MASK)
    ours, expected = real_rows(normed, MASK), by_hand(real, weights, training)
    if training:
        ours += [normed[~MASK].detach().numpy(), network.norm.running_mean, network.norm.running_var]
        expected += [np.zeros((N * T - sum(NUM_WORDS), C)), *statistics_by_hand(real, weights)]
    return distance(ours, expected)


@pytest.mark.parametrize("training", [False, True])
def test_the_norm_and_its_statistics_are_those_of_the_real_words(training):
    assert difference(word_batch_norm, training) < TOLERANCE


@pytest.mark.parametrize(
    ("training", "old", "new"),
    [
        pytest.param(True, "if not self.norm.training:", "if True:", id="padding counted"),
        pytest.param(True, "rows = words[word_mask]", "rows = words.flatten(0, 1)", id="all rows"),
        pytest.param(True, "words.new_zeros(", "words.new_ones(", id="padding not zero"),
        pytest.param(True, "normed = self.norm(rows)", "normed = rows", id="no norm"),
        pytest.param(True, "normed = self.norm(rows)", "normed = self.norm(self.norm(rows))", id="normed twice"),
        pytest.param(True, "BatchNorm1d(hidden_size)", "BatchNorm1d(hidden_size, momentum=0.2)", id="momentum"),
        pytest.param(False, "BatchNorm1d(hidden_size)", "BatchNorm1d(hidden_size, eps=1e-3)", id="eps"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_norm(training, old, new):
    assert difference(edited(word_batch_norm, (old, new)), training) > NOTICEABLE


def test_what_stands_in_the_padding_changes_no_statistic():
    words = draw(N, T, C)
    others = torch.where(MASK[..., None], words, 1e3)
    one, other = drawn(WordBatchNorm(C)).train(), drawn(WordBatchNorm(C)).train()
    assert torch.equal(one(words, MASK), other(others, MASK))
    assert torch.equal(one.norm.running_var, other.norm.running_var)


def test_in_eval_every_row_padded_or_not_goes_through_one_affine_map():
    network = drawn(WordBatchNorm(C)).eval()
    words, others = draw(N, T, C), draw(N, T, C, seed=2)
    between = network(0.3 * words + 0.7 * others, MASK)
    torch.testing.assert_close(between, 0.3 * network(words, MASK) + 0.7 * network(others, MASK), rtol=0, atol=1e-12)
    weights = weights_of(network)
    expected = by_hand(list(words.numpy()), weights, training=False)
    assert distance(network(words, MASK).detach(), expected) < TOLERANCE


def test_one_single_word_in_a_training_batch_is_refused_with_what_to_do():
    one_word = torch.tensor([[True, False]])
    network = WordBatchNorm(C).train()
    with pytest.raises(ValueError, match=r"at least two words.*one expression of one word.*larger batch"):
        network(torch.randn(1, 2, C), one_word)
    assert network.eval()(torch.randn(1, 2, C), one_word).shape == (1, 2, C)


def test_convert_sync_batchnorm_finds_the_norm_and_keeps_its_weights():
    network = drawn(WordBatchNorm(C)).eval()
    words = draw(N, T, C)
    expected = network(words, MASK)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    torch.testing.assert_close(converted(words, MASK), expected, rtol=0, atol=1e-12)
