import numpy as np
import pytest
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
from test_mutual_attention import VARIANTS, linear_by_hand
from test_mutual_attention import by_hand as mutual_attention_by_hand

from m3dec import decoder_layer, multi_head_attention

N, T, P, HEADS, C = 3, 5, 7, 2, 2 * 11
NUM_WORDS = [5, 2, 3]
MASK = first_words(NUM_WORDS, T)


def multi_head_attention_by_hand(queries, keys, weights, heads):
    """What `queries` (L, C) take from `keys` (M, C), head by head: (L, C), and the weights (heads, L, M)."""
    query, key, value = (
        linear_by_hand(x, weights, name) for x, name in [(queries, "query"), (keys, "key"), (keys, "value")]
    )
    size = query.shape[1] // heads
    attended, shares = np.zeros_like(query), np.zeros((heads, len(queries), len(keys)))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(queries)):
            e = np.exp([query[i, part] @ key[j, part] / np.sqrt(size) for j in range(len(keys))])
            shares[head, i] = e / sum(e)
            attended[i, part] = sum(shares[head, i, j] * value[j, part] for j in range(len(keys)))
    return linear_by_hand(attended, weights, "output"), shares


def layer_norm_by_hand(rows, weights):
    """Each row of (L, C) brought to mean 0 and variance 1, then scaled and shifted."""
    normed = [(row - sum(row) / len(row)) / np.sqrt(sum((row - row.mean()) ** 2) / len(row) + 1e-5) for row in rows]
    return np.array(normed) * weights["weight"] + weights["bias"]


def by_hand(queries, pixels, weights, heads, variant, training):
    """Fig. 3(c) for N expressions `queries` (T_n, C) about `pixels` (P, C), with nothing padded.

    Gives F_dec, (T_n, C) each; and the weights of the self-attention, A_mut, and the weights of the cross-attention.
    """
    part = {name: under(weights, name) for name in ("self_attention", "mutual_attention", "cross_attention")}
    norm = {name: under(weights, f"{name}_norm") for name in ("self_attention", "cross_attention", "feed_forward")}
    attended, seen_by_self = zip(
        *(multi_head_attention_by_hand(query, query, part["self_attention"], heads) for query in queries), strict=True
    )
    queries = [layer_norm_by_hand(q + a, norm["self_attention"]) for q, a in zip(queries, attended, strict=True)]  # F_q
    places = [range(len(p)) for p in pixels]
    fused, matrices = mutual_attention_by_hand(queries, pixels, places, part["mutual_attention"], variant, training)
    attended, seen_by_cross = zip(
        *(
            multi_head_attention_by_hand(query, feature, part["cross_attention"], heads)
            for query, feature in zip(queries, fused, strict=True)
        ),
        strict=True,
    )
    decoded = [layer_norm_by_hand(q + a, norm["cross_attention"]) for q, a in zip(queries, attended, strict=True)]
    if "feed_forward.0.weight" in weights:
        for n, rows in enumerate(decoded):
            hidden = np.maximum(linear_by_hand(rows, weights, "feed_forward.0"), 0)
            rows = rows + linear_by_hand(hidden, weights, "feed_forward.3")
            decoded[n] = layer_norm_by_hand(rows, norm["feed_forward"])
    return decoded, [*seen_by_self, *matrices, *seen_by_cross]


def difference(module, variant="shared", ffn_dim=13, training=False, eager=True):
    """How far a decoder layer is from the oracle, in what it gives and, if `eager`, in what was attended."""
    layer = drawn(module.DecoderLayer(C, P, HEADS, ffn_dim, mutual_attention=variant)).train(training)
    queries, pixels, weights = draw(N, T, C), draw(N, P, C, seed=2), weights_of(layer)
    decoded, (seen_by_self, matrices, seen_by_cross) = layer(queries, pixels, MASK, eager)
    ours = real_rows(decoded, MASK)
    expected, attended = by_hand(real_rows(queries, MASK), pixels.numpy(), weights, HEADS, variant, training)
    if eager:
        keys = [P] * N if variant == "vision_attended_language" else NUM_WORDS
        ours += [seen_by_self[n, :, :t, :t].detach() for n, t in enumerate(NUM_WORDS)]
        ours += [matrices[n, :t].detach() for n, t in enumerate(NUM_WORDS)]
        ours += [seen_by_cross[n, :, :t, :k].detach() for n, (t, k) in enumerate(zip(NUM_WORDS, keys, strict=True))]
        expected += attended
    else:
        assert seen_by_self is None
        assert seen_by_cross is None
    return distance(ours, expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("ffn_dim", [13, 0], ids=["feed-forward", "no feed-forward"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_decoder_layer_is_fig_3c(variant, ffn_dim, training):
    assert difference(decoder_layer, variant, ffn_dim, training) < TOLERANCE


@pytest.mark.parametrize("variant", ["shared", "vision_attended_language"])
@pytest.mark.parametrize("few_keys", [64, 0], ids=["plain products", "fused kernel"])
def test_without_attentions_on_request_it_is_the_same(few_keys, variant, monkeypatch):
    monkeypatch.setattr(multi_head_attention, "FEW_KEYS", few_keys)
    assert difference(decoder_layer, variant, eager=False) < TOLERANCE


SELF = "query = self.self_attention_norm(query + self.dropout(attended))"
CROSS = "query = self.cross_attention_norm(query + self.dropout(attended))"
MUTUAL = "fused, scores = self.mutual_attention(query, pixels, word_mask)"
FEED_FORWARD = "query = self.feed_forward_norm(query + self.dropout(self.feed_forward(query)))"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            "self.self_attention(query, query, query, word_mask",
            "self.self_attention(query, query, query, None",
            id="self-attention without mask",
        ),
        pytest.param(SELF, "query = self.self_attention_norm(attended)", id="self-attention without residual"),
        pytest.param(SELF, "query = query + attended", id="self-attention without norm"),
        pytest.param(SELF, "query = query + self.self_attention_norm(attended)", id="norm before the residual"),
        pytest.param(SELF, "pass", id="self-attention not used"),
        pytest.param(MUTUAL, f"{MUTUAL}; fused = fused + query", id="residual around M3Att"),
        pytest.param(MUTUAL, f"{MUTUAL}; fused = query", id="M3Att not used"),
        pytest.param(MUTUAL, MUTUAL.replace("word_mask", "word_mask | True"), id="M3Att without mask"),
        pytest.param(
            "(query, fused, fused, fused_mask", "(fused, query, query, fused_mask", id="cross-attention swapped"
        ),
        pytest.param("(query, fused, fused, fused_mask", "(query, query, fused, fused_mask", id="the query as keys"),
        pytest.param("(query, fused, fused, fused_mask", "(query, fused, query, fused_mask", id="the query as values"),
        pytest.param(
            "(query, fused, fused, fused_mask", "(query, fused, fused, None", id="cross-attention without mask"
        ),
        pytest.param(CROSS, "query = self.cross_attention_norm(attended)", id="cross-attention without residual"),
        pytest.param(CROSS, "query = query + attended", id="cross-attention without norm"),
        pytest.param(CROSS, "query = self.cross_attention_norm(fused + attended)", id="residual from the wrong side"),
        pytest.param(CROSS, "query = self.self_attention_norm(query + attended)", id="the other norm"),
        pytest.param(FEED_FORWARD, "pass", id="no feed-forward"),
        pytest.param(
            FEED_FORWARD, "query = self.feed_forward_norm(self.feed_forward(query))", id="feed-forward without residual"
        ),
        pytest.param(FEED_FORWARD, "query = query + self.feed_forward(query)", id="feed-forward without norm"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_layer(old, new):
    assert difference(edited(decoder_layer, (old, new)), eager=False) > NOTICEABLE


@pytest.mark.parametrize(
    ("variant", "old", "new"),
    [
        pytest.param("shared", "query * query.shape[-1] ** -0.5 @", "query @", id="without scale"),
        pytest.param(
            "shared", "query * query.shape[-1] ** -0.5", "query * queries.shape[-1] ** -0.5", id="scale of all channels"
        ),
        pytest.param(
            "shared",
            "query * query.shape[-1] ** -0.5 @ key.mT",
            "key * query.shape[-1] ** -0.5 @ query.mT",
            id="swapped",
        ),
        pytest.param(
            "shared", "weights = scores.softmax(dim=-1)", "weights = scores.softmax(dim=-2)", id="softmax over queries"
        ),
        pytest.param(
            "vision_attended_language",
            "weights = scores.softmax(dim=-1)",
            "weights = scores.softmax(dim=-2)",
            id="VAL only, softmax over queries",
        ),
        pytest.param("shared", "if mask is not None:", "if False:", id="without mask"),
        pytest.param("shared", "value = self.value(values)", "value = self.key(values)", id="keys for values"),
        pytest.param("shared", "split = (self.num_heads, -1)", "split = (-1, self.num_heads)", id="heads for channels"),
        pytest.param(
            "shared",
            "self.output(attended.transpose(1, 2).flatten(2))",
            "attended.transpose(1, 2).flatten(2)",
            id="without output",
        ),
        pytest.param(
            "shared", "F.dropout(weights, dropout) @ value", "F.dropout(scores, dropout) @ value", id="without softmax"
        ),
        pytest.param("shared", "nn.ReLU()", "nn.Identity()", id="feed-forward without ReLU"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_attention_heads(variant, old, new, monkeypatch):
    mutant = edited(multi_head_attention, (old, new))
    monkeypatch.setattr(decoder_layer, "MultiHeadAttention", mutant.MultiHeadAttention)
    monkeypatch.setattr(decoder_layer, "FeedForward", mutant.FeedForward)
    assert difference(decoder_layer, variant, eager=False) > NOTICEABLE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("attn_mask=mask", "attn_mask=None", id="without mask"),
        pytest.param("attn_mask=mask", "attn_mask=~mask", id="mask inverted"),
        pytest.param("attn_mask=mask", "attn_mask=mask, scale=1.0", id="without scale"),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_call_of_the_fused_kernel(old, new, monkeypatch):
    mutant = edited(multi_head_attention, (old, new), ("FEW_KEYS = 64", "FEW_KEYS = 0"))
    monkeypatch.setattr(decoder_layer, "MultiHeadAttention", mutant.MultiHeadAttention)
    assert difference(decoder_layer, eager=False) > NOTICEABLE


def test_the_oracle_notices_weights_that_were_not_those_applied(monkeypatch):
    mutant = edited(multi_head_attention, ("weights if eager", "scores if eager"))
    monkeypatch.setattr(decoder_layer, "MultiHeadAttention", mutant.MultiHeadAttention)
    assert difference(decoder_layer) > NOTICEABLE


def test_padded_words_are_given_no_weight_at_all():
    layer = drawn(decoder_layer.DecoderLayer(C, P, HEADS, 13)).eval()
    _, (seen_by_self, _, seen_by_cross) = layer(draw(N, T, C), draw(N, P, C, seed=2), MASK, True)
    padding = ~MASK[:, None, None, :].expand_as(seen_by_self)
    assert (seen_by_self[padding] == 0).all()
    assert (seen_by_cross[padding] == 0).all()
