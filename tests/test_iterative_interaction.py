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
from test_decoder_layer import by_hand as decoder_layer_by_hand
from test_mutual_attention import linear_by_hand
from test_word_batch_norm import by_hand as batch_norm_by_hand
from transformers import ResNetConfig

from m3dec import M3DecConfig, M3DecModel, iterative_interaction

N, T, C = 3, 5, 11
NUM_WORDS = [5, 2, 3]
MASK = first_words(NUM_WORDS, T)


def by_hand(queries, languages, weights, training, static=False):
    """Eq. 3 and Fig. 4 for N expressions, F_dec^n and F_l^(n-1), (T_n, C) each: gives F_dec'^n and F_l^n.

    `static` is IMI* of Table II: F_i^n = F_t.
    """
    sums, carried = [], []
    for query, language in zip(queries, languages, strict=True):
        num_words, injected = len(query), language
        if not static:
            language = linear_by_hand(language, weights, "language_transform")  # F_l^n
            asked = np.maximum(query @ weights["query_projection.weight"].T, 0)
            value = np.maximum(language @ weights["language_projection.weight"].T, 0)  # F_l'^n
            injected = []
            for i in range(num_words):
                e = [np.exp(asked[i] @ language[j]) for j in range(num_words)]
                injected.append(sum(e[j] * value[j] for j in range(num_words)) / sum(e))  # F_i^n
        sums.append(query + weights["interaction_weight"] * np.array(injected))
        carried.append(language)
    return batch_norm_by_hand(sums, under(weights, "norm"), training), carried


def difference(module, name="IterativeInteraction", training=False):
    """How far a block is from the oracle, in F_dec'^n and in F_l^n."""
    block = drawn(getattr(module, name)(C)).train(training)
    query, language, weights = draw(N, T, C), draw(N, T, C, seed=2), weights_of(block)
    ours = [rows for feature in block(query, language, MASK) for rows in real_rows(feature, MASK)]
    expected = by_hand(
        real_rows(query, MASK), real_rows(language, MASK), weights, training, static=name == "StaticInteraction"
    )
    return distance(ours, expected[0] + expected[1])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", ["IterativeInteraction", "StaticInteraction"])
def test_an_interaction_is_equation_3_and_imi_star_is_its_words_unchanged(name, training):
    assert difference(iterative_interaction, name, training) < TOLERANCE


SCORES = "scores = self.query_projection(query).relu() @ language.mT"
VALUE = "@ self.language_projection(language).relu()"
RESULT = "self.norm(query + self.interaction_weight * injected, word_mask), language"
MASKED = "scores = scores.masked_fill(~word_mask[:, None, :], torch.finfo(scores.dtype).min)"


@pytest.mark.parametrize(
    ("training", "old", "new"),
    [
        pytest.param(False, SCORES, SCORES.replace(".relu()", ""), id="query without ReLU"),
        pytest.param(False, SCORES, f"{SCORES} * query.shape[-1] ** -0.5", id="a scale that Eq. 3 has not"),
        pytest.param(False, SCORES, "scores = language @ self.query_projection(query).relu().mT", id="swapped"),
        pytest.param(
            False, SCORES, "scores = self.query_projection(language).relu() @ query.mT", id="W_a on the words"
        ),
        pytest.param(False, SCORES, "scores = query.relu() @ language.mT", id="without W_a"),
        pytest.param(False, "scores.softmax(dim=-1)", "scores.softmax(dim=-2)", id="softmax over queries"),
        pytest.param(False, MASKED, "pass", id="without mask"),
        pytest.param(False, MASKED, MASKED.replace("[:, None, :]", "[:, :, None]"), id="mask on queries"),
        pytest.param(False, VALUE, VALUE.replace(".relu()", ""), id="language without ReLU"),
        pytest.param(False, VALUE, "@ language", id="without W_l'"),
        pytest.param(False, VALUE, VALUE.replace("(language)", "(query)"), id="F_dec for F_l"),
        pytest.param(
            False, "language = self.language_transform(language)", "pass", id="F_l^(n-1) for F_l^n everywhere"
        ),
        pytest.param(False, RESULT, RESULT.replace("self.interaction_weight * ", ""), id="without w_ci"),
        pytest.param(False, RESULT, RESULT.replace("query + ", ""), id="without F_dec^n"),
        pytest.param(False, RESULT, RESULT.replace(", language", ", query"), id="F_dec carried on"),
        pytest.param(False, RESULT, "query + self.interaction_weight * injected, language", id="without BN"),
        pytest.param(False, RESULT, RESULT.replace("word_mask)", "word_mask).relu()"), id="a ReLU that Fig. 4 has not"),
        pytest.param(True, RESULT, RESULT.replace("word_mask", "word_mask | True"), id="BN over padding"),
    ],
)
def test_the_oracle_notices_a_mistake_in_equation_3(training, old, new):
    assert difference(edited(iterative_interaction, (old, new)), training=training) > NOTICEABLE


# F_l^n is made first, so that nothing below can mean F_l^(n-1) by accident; these three do so in one place each.
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(SCORES, SCORES.replace("language.mT", "previous.mT"), id="scores"),
        pytest.param(VALUE, VALUE.replace("(language)", "(previous)"), id="values"),
        pytest.param(RESULT, RESULT.replace(", language", ", previous"), id="carried on"),
    ],
)
def test_the_oracle_notices_the_previous_language_in_place_of_this_block_s(old, new):
    transform = "language = self.language_transform(language)"
    mutant = edited(iterative_interaction, (transform, f"previous = language; {transform}"), (old, new))
    assert difference(mutant) > NOTICEABLE


STATIC = "self.norm(query + self.interaction_weight * language, word_mask), language"


@pytest.mark.parametrize(
    ("training", "old", "new"),
    [
        pytest.param(False, STATIC, STATIC.replace("self.interaction_weight * ", ""), id="without w_ci"),
        pytest.param(False, STATIC, STATIC.replace("query + ", ""), id="without F_dec^n"),
        pytest.param(False, STATIC, STATIC.replace(", language", ", query"), id="F_dec carried on"),
        pytest.param(False, STATIC, "query + self.interaction_weight * language, language", id="without BN"),
        pytest.param(True, STATIC, STATIC.replace("word_mask", "word_mask | True"), id="BN over padding"),
    ],
)
def test_the_oracle_notices_a_mistake_in_imi_star(training, old, new):
    assert difference(edited(iterative_interaction, (old, new)), "StaticInteraction", training) > NOTICEABLE


def test_w_ci_starts_at_a_tenth_so_that_the_whole_block_has_a_gradient_at_once():
    torch.manual_seed(0)
    block = iterative_interaction.IterativeInteraction(C)
    assert block.interaction_weight.item() == pytest.approx(0.1)
    query, _ = block(draw(N, T, C).float(), draw(N, T, C, seed=2).float(), MASK)
    (query[MASK] ** 3).sum().backward()
    assert all(parameter.grad.any() for parameter in block.parameters())


HEADS, HIDDEN, SIDE = 2, 2 * 10, 2


def decoder_difference(interaction="iterative"):
    """How far Fig. 2 from F_enc and F_t to F_dec, three layers with two blocks between them, is from the oracles."""
    backbone = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 4, 4, 4],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = M3DecConfig(
        backbone_config=backbone,
        image_size=16 * SIDE,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_encoder_layers=1,
        num_decoder_layers=3,
        encoder_ffn_dim=7,
        decoder_ffn_dim=13,
        max_words=T,
        vocab_size=17,
        word_vector_size=3,
        interaction=interaction,
    )
    model = drawn(M3DecModel(config)).eval()
    pixels, input_ids = draw(N, SIDE**2, HIDDEN), torch.arange(N * T).view(N, T)
    with torch.inference_mode():
        outputs = model(
            image_features=pixels, input_ids=input_ids, attention_mask=MASK.long(), output_hidden_states=True
        )
    weights = weights_of(model)
    queries = languages = real_rows(outputs.word_features, MASK)
    ours, expected = [], []
    for n, state in enumerate(outputs.hidden_states[1:]):
        if n > 0 and interaction != "none":
            block = under(weights, f"interactions.{n - 1}")
            queries, languages = by_hand(queries, languages, block, False, static=interaction == "static")
        layer = under(weights, f"decoder_layers.{n}")
        queries, _ = decoder_layer_by_hand(queries, pixels.numpy(), layer, HEADS, "shared", False)
        ours += real_rows(state, MASK)
        expected += queries
    ours += real_rows(outputs.last_hidden_state, MASK)
    return distance(ours, expected + queries)


@pytest.mark.parametrize("interaction", ["iterative", "static", "none"])
def test_the_decoder_is_fig_2_with_a_block_between_each_two_layers(interaction):
    assert decoder_difference(interaction) < TOLERANCE


CALL = "query, language = self.interactions[number - 1](query, language, word_mask)"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(CALL, CALL.replace("query, language =", "query, _ ="), id="language not carried on"),
        pytest.param(CALL, CALL.replace("(query, language", "(query, words"), id="F_t for F_l^(n-1)"),
        pytest.param(CALL, CALL.replace("(query, language", "(language, query"), id="swapped"),
        pytest.param(CALL, CALL.replace("number - 1", "0"), id="the first block again"),
        pytest.param(CALL, "pass", id="no block"),
        pytest.param("if number > 0 and", "if number > 1 and", id="no block after the first layer"),
        pytest.param(
            "query, language = words, words", "query, language = words, sentence + 0 * words", id="F_t' for F_t"
        ),
        pytest.param("query, weights = layer(query,", "query, weights = layer(words,", id="each layer begins anew"),
    ],
)
def test_the_oracle_notices_a_mistake_between_the_layers(old, new, monkeypatch):
    monkeypatch.setattr(M3DecModel, "forward", edited(M3DecModel.forward, (old, new)))
    assert decoder_difference() > NOTICEABLE
