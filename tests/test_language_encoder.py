import numpy as np
import pytest
import torch
from mutants import (
    NOTICEABLE,
    TOLERANCE,
    distance,
    drawn,
    edited,
    first_words,
    real_rows,
    under,
    weights_of,
)
from test_mutual_attention import linear_by_hand
from transformers import BertConfig

from m3dec import language_encoder
from m3dec.language_encoder import RecurrentLanguageEncoder

N, T, V, D, HALF = 4, 7, 17, 5, 11
C = 2 * HALF
NUM_WORDS = [7, 2, 3, 1]
MASK = first_words(NUM_WORDS, T)
UNKNOWN = 13
INPUT_IDS = torch.tensor(
    [[2, 13, 3, 4, 5, 13, 6], [13, 7, 0, 0, 0, 0, 0], [8, 9, 10, 0, 13, 0, 0], [11, 0, 12, 14, 0, 0, 0]]
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(vectors, weights):
    """Hochreiter and Schmidhuber's network over (L, D), one word at a time: (L, H)."""
    size = weights["weight_hh_l0"].shape[1]
    hidden, cell, states = np.zeros(size), np.zeros(size), []
    for vector in vectors:
        gates = weights["weight_ih_l0"] @ vector + weights["bias_ih_l0"]
        gates = gates + weights["weight_hh_l0"] @ hidden + weights["bias_hh_l0"]
        taken, kept, new, told = (gates[i * size : (i + 1) * size] for i in range(4))
        cell = sigmoid(kept) * cell + sigmoid(taken) * np.tanh(new)
        hidden = sigmoid(told) * np.tanh(cell)
        states.append(hidden)
    return np.array(states)


def gru_by_hand(vectors, weights):
    """Cho's network over (L, D), with the reset gate after the product, one word at a time: (L, H)."""
    size = weights["weight_hh_l0"].shape[1]
    hidden, states = np.zeros(size), []
    for vector in vectors:
        of_word = weights["weight_ih_l0"] @ vector + weights["bias_ih_l0"]
        of_past = weights["weight_hh_l0"] @ hidden + weights["bias_hh_l0"]
        reset = sigmoid(of_word[:size] + of_past[:size])
        kept = sigmoid(of_word[size : 2 * size] + of_past[size : 2 * size])
        new = np.tanh(of_word[2 * size :] + reset * of_past[2 * size :])
        hidden = kept * hidden + (1 - kept) * new
        states.append(hidden)
    return np.array(states)


def by_hand(expressions, weights, recurrent_type):
    """F_t (T_n, C) and F_t' (1, C) of N lists of word ids, without padding."""
    recurrent = {"lstm": lstm_by_hand, "gru": gru_by_hand}[recurrent_type]
    words, sentences = [], []
    for ids in expressions:
        vectors = [weights["unknown_word"] if i == UNKNOWN else weights["word_vectors.weight"][i] for i in ids]
        ahead = recurrent(vectors, under(weights, "forward_recurrent"))
        back = recurrent(vectors[::-1], under(weights, "backward_recurrent"))
        words.append(np.array([np.concatenate([ahead[t], back[len(ids) - 1 - t]]) for t in range(len(ids))]))
        sentences.append(np.concatenate([ahead[-1], back[-1]])[None])  # having read the last word, and the first
    return words, sentences


def difference(module, recurrent_type="lstm"):
    """How far F_t and F_t' are from the oracle's."""
    encoder = drawn(module.RecurrentLanguageEncoder(V, D, C, UNKNOWN, recurrent_type))
    words, sentences, *_ = encoder(INPUT_IDS, MASK)
    assert sentences.shape == (N, 1, C)
    ids = [row[:t].tolist() for row, t in zip(INPUT_IDS, NUM_WORDS, strict=True)]
    expected = by_hand(ids, weights_of(encoder), recurrent_type)
    return distance(real_rows(words, MASK) + list(sentences.detach()), expected[0] + expected[1])


@pytest.mark.parametrize("recurrent_type", ["lstm", "gru"])
def test_words_and_sentence_are_those_of_one_recurrent_layer_read_from_both_ends(recurrent_type):
    assert difference(language_encoder, recurrent_type) < TOLERANCE


REVERSE = "torch.where(position < lengths, lengths - 1 - position, position)"
SENTENCE = "sentence = torch.cat([ahead.gather(1, last), back.gather(1, last)], dim=-1)"
WORDS = "words = torch.cat([ahead, back.gather(1, reverse.expand_as(back))], dim=-1)"


@pytest.mark.parametrize("recurrent_type", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(REVERSE, "(0 * lengths + position).flip(1)", id="reversed with its padding"),
        pytest.param(REVERSE, "(0 * lengths + position)", id="not reversed"),
        pytest.param(REVERSE, "((lengths - position) % input_ids.shape[1])", id="reversed from one too far"),
        pytest.param(
            "last = (lengths - 1)", "last = (0 * lengths - 1 + input_ids.shape[1])", id="final states at the padding"
        ),
        pytest.param(
            SENTENCE, SENTENCE.replace("ahead.gather(1, last)", "ahead[:, :1]"), id="forward state at the first word"
        ),
        pytest.param(
            SENTENCE, SENTENCE.replace("back.gather(1, last)", "back[:, :1]"), id="backward state at the last word"
        ),
        pytest.param(
            SENTENCE, "sentence = torch.cat([back.gather(1, last), ahead.gather(1, last)], dim=-1)", id="F_t' swapped"
        ),
        pytest.param(SENTENCE, "sentence = vectors.new_zeros(len(vectors), 1, 2 * ahead.shape[-1])", id="without F_t'"),
        pytest.param(WORDS, "words = torch.cat([ahead, back], dim=-1)", id="not turned back"),
        pytest.param(
            WORDS, "words = torch.cat([back.gather(1, reverse.expand_as(back)), ahead], dim=-1)", id="F_t swapped"
        ),
        pytest.param(
            "hidden_states_of(self.backward_recurrent",
            "hidden_states_of(self.forward_recurrent",
            id="one network for both ends",
        ),
        pytest.param(
            "torch.where(unknown, self.unknown_word, self.word_vectors(input_ids))",
            "self.word_vectors(input_ids)",
            id="[UNK] not shared",
        ),
        pytest.param("input_ids == self.unk_token_id", "input_ids == 1", id="another [UNK]"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_language_encoder(old, new, recurrent_type):
    assert difference(edited(language_encoder, (old, new)), recurrent_type) > NOTICEABLE


@pytest.mark.parametrize("recurrent_type", ["lstm", "gru"])
def test_all_unknown_words_share_one_vector_which_is_trained_though_the_others_are_frozen(recurrent_type):
    encoder = RecurrentLanguageEncoder(V, D, C, UNKNOWN, recurrent_type).double()
    assert not encoder.word_vectors.weight.requires_grad
    words, *_ = encoder(INPUT_IDS, MASK)
    words[MASK].sum().backward()
    assert encoder.unknown_word.grad.any()

    before = weights_of(encoder)
    with torch.no_grad():
        encoder.word_vectors.weight[UNKNOWN] += 1  # the row that nobody reads
    after, *_ = encoder(INPUT_IDS, MASK)
    assert torch.equal(after, words)
    assert (weights_of(encoder)["unknown_word"] == before["unknown_word"]).all()


def test_word_vectors_that_are_not_frozen_are_trained_where_they_are_read():
    encoder = RecurrentLanguageEncoder(V, D, C, UNKNOWN, freeze_word_vectors=False).double()
    words, *_ = encoder(INPUT_IDS, MASK)
    words[MASK].sum().backward()
    read = set(INPUT_IDS[MASK].tolist()) - {UNKNOWN}
    assert {i for i, row in enumerate(encoder.word_vectors.weight.grad) if row.any()} == read


def bert_difference(module):
    """How far F_t and F_t' of a BERT are from a linear layer each, of all pieces and of [CLS]."""
    config = BertConfig(
        vocab_size=V,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=7,
        max_position_embeddings=T,
    )
    torch.manual_seed(0)
    encoder = module.BertLanguageEncoder(config, C)
    encoder = drawn(encoder).eval()
    words, sentences, *_ = encoder(INPUT_IDS, MASK)
    weights, expected = weights_of(encoder), []
    for row, t in zip(INPUT_IDS, NUM_WORDS, strict=True):  # each expression by itself, so nothing is padded
        hidden = encoder.text_encoder(input_ids=row[None, :t]).last_hidden_state[0].detach().numpy()
        expected.append(
            (
                linear_by_hand(hidden, weights, "word_projection"),
                linear_by_hand(hidden[:1], weights, "sentence_projection"),
            )
        )
    ours = real_rows(words, MASK) + list(sentences.detach())
    return distance(ours, [words for words, _ in expected] + [sentence for _, sentence in expected])


def test_of_a_bert_every_piece_is_a_word_and_cls_the_sentence():
    assert bert_difference(language_encoder) < TOLERANCE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("attention_mask=word_mask.long(),", "", id="without mask"),
        pytest.param("hidden[:, :1]", "hidden.mean(1, keepdim=True)", id="a mean for [CLS]"),
        pytest.param("self.sentence_projection(hidden", "self.word_projection(hidden", id="one layer for both"),
    ],
)
def test_the_oracle_notices_a_mistake_with_a_bert(old, new):
    assert bert_difference(edited(language_encoder, (old, new))) > NOTICEABLE
