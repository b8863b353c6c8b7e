"""The rows of the paper's tables, each a setting: it learns, survives a file, and holds no layer it does not use."""

import re

import pytest
import torch
from test_modeling_m3dec import TINY_BERT, TINY_SWIN, loud, pictures, tiny_config, training_batch
from transformers import BertConfig, SwinConfig

from m3dec.configuration.configuration_m3dec import M3DecConfig
from m3dec.modeling_m3dec import M3DecForImageSegmentation

MUTUAL = ["shared", "independent", "language_attended_vision", "vision_attended_language"]
TABLE_I = {
    f"{mutual}, {layers} layers": {
        "mutual_attention": mutual,
        "num_decoder_layers": layers,
        "interaction": "iterative" if layers > 1 else "none",
    }
    for mutual in MUTUAL
    for layers in (1, 2, 3, 4)
}
TABLE_II = {
    "#0, LAV alone": {
        "mutual_attention": "language_attended_vision",
        "interaction": "none",
        "reconstruction_loss_weight": 0,
    },
    "#1, M3Att": {"interaction": "none", "reconstruction_loss_weight": 0},
    "#2, with IMI": {"reconstruction_loss_weight": 0},
    "#3, with IMI*": {"interaction": "static", "reconstruction_loss_weight": 0},
    "#4, with LFR": {},
}
TABLE_III = {
    decoder: {"mask_decoder": decoder, "num_decoder_layers": 2}
    for decoder in ("dynamic_kernels", "concatenated", "decoder_only")
}
TABLE_IV = {
    "bi-GRU": {"recurrent_type": "gru", "num_decoder_layers": 2},
    "Swin and BERT": {"backbone_config": TINY_SWIN, "text_config": TINY_BERT},
    "BERT without LFR": {"text_config": TINY_BERT, "reconstruction_loss_weight": 0, "num_decoder_layers": 2},
    "BERT, LFR detached": {"text_config": TINY_BERT, "reconstruction_target": "detached", "num_decoder_layers": 2},
}
OURS = {
    "stride 8": {"feature_stride": 8},
    "no feed-forward block": {"decoder_ffn_dim": 0},
    "LFR detached": {"reconstruction_target": "detached"},
    "LFR linear": {"reconstruction_output": "linear"},
    "trained word vectors": {"freeze_word_vectors": False},
    "frozen backbone": {"freeze_backbone": True},
    "Dice beside BCE": {"dice_loss_weight": 0.1},
} | {f"{count} upsamplings": {"num_mask_upsamplings": count} for count in range(4)}
VARIANTS = TABLE_I | TABLE_II | TABLE_III | TABLE_IV | {name: {"num_decoder_layers": 2} | o for name, o in OURS.items()}

# A softmax does not see what is added to all its scores, nor a batch norm what is added to all its rows: these biases
# have no gradient but rounding, in the paper's own equations.
CANCELLED = re.compile(
    r"\.(key|k_proj)\.bias$|mutual_attention\.output\.bias$|language_reconstruction\.(first|second|third)\.bias$"
    r"|hidden_states_norms\.\w+\.bias$"
)
CANCELLED_IN = {
    "independent": r"\.(pixel_key|second_word_key)\.bias$",
    "language_attended_vision": r"\.pixel_(key|value)\.bias$",
    "vision_attended_language": r"\.word_(key|value)\.bias$",
    "static": r"decoder_layers\.[0-2]\.feed_forward_norm\.bias$",
}


def variant(**settings) -> M3DecConfig:
    return tiny_config(**{"num_decoder_layers": 3} | settings)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_of_a_variant_learns_within_two_steps(settings):
    config = variant(**settings)
    torch.manual_seed(0)
    model = (
        loud(M3DecForImageSegmentation(config)).double().train()
    )  # in float64, so that rounding is told from a gradient
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    largest = dict.fromkeys(trained, 0.0)
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    for seed in (0, 1):
        batch = {
            key: value.double() if value.is_floating_point() else value
            for key, value in training_batch(seed=seed).items()
        }
        assert 1 in batch["input_ids"]  # an unknown word
        optimizer.zero_grad()
        outputs = model(**batch)
        assert outputs.loss.isfinite()
        assert (outputs.reconstruction_loss is None) == (config.reconstruction_loss_weight == 0)
        outputs.loss.backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            largest[name] = max(largest[name], parameter.grad.abs().max().item())
        optimizer.step()
    cancelled_here = [
        CANCELLED_IN[choice] for choice in CANCELLED_IN.keys() & {config.mutual_attention, config.interaction}
    ]
    patterns = [CANCELLED, *map(re.compile, cancelled_here)]
    cancelled = {name for name in trained if any(pattern.search(name) for pattern in patterns)}
    assert {name for name, size in largest.items() if size < 1e-11} <= cancelled


@torch.inference_mode()
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_comes_back_from_its_file_to_the_bit(settings, tmp_path):
    config, batch = variant(**settings), training_batch()
    torch.manual_seed(0)
    model = M3DecForImageSegmentation(config).train()
    model(**batch)  # moves the batch norms
    model.eval().save_pretrained(tmp_path)
    loaded = M3DecForImageSegmentation.from_pretrained(tmp_path)
    for name in settings.keys() - {"backbone_config", "text_config"}:
        assert getattr(loaded.config, name) == settings[name]
    expected = model(**batch)
    side = 64 // config.feature_stride * 2**config.num_mask_upsamplings
    assert expected.logits.shape == (4, side, side) and expected.logits.isfinite().all()
    assert torch.equal(loaded(**batch).logits, expected.logits)
    assert torch.equal(loaded(**batch).loss, expected.loss)


# Parts that a variant has (True) and has not (False), by what their weights are called
LAYERS = [
    ({}, r"mutual_attention\.second_", False),
    ({}, r"mutual_attention\.(word|pixel)_(key|value)\.", True),
    ({"mutual_attention": "independent"}, r"mutual_attention\.second_(word|pixel)_key\.", True),
    ({"mutual_attention": "independent"}, r"mutual_attention\.second_(word|pixel)_value\.", False),
    ({"mutual_attention": "language_attended_vision"}, r"mutual_attention\.(word_value|second_)", False),
    ({"mutual_attention": "language_attended_vision"}, r"mutual_attention\.pixel_value\.", True),
    ({"mutual_attention": "vision_attended_language"}, r"mutual_attention\.(pixel_value|second_)", False),
    ({"mutual_attention": "vision_attended_language"}, r"mutual_attention\.word_value\.", True),
    ({}, r"interactions\.1\.(language_transform|query_projection|language_projection|interaction_weight)", True),
    ({}, r"interactions\.2\.", False),
    ({"interaction": "static"}, r"interactions\.1\.interaction_weight", True),
    ({"interaction": "static"}, r"interactions\.\d\.(language|query)_", False),
    ({"interaction": "none"}, r"interactions\.", False),
    ({"interaction": "none", "num_decoder_layers": 1}, r"decoder_layers\.1\.", False),
    ({}, r"^language_reconstruction\.", True),
    ({"reconstruction_loss_weight": 0}, r"^language_reconstruction\.", False),
    ({}, r"mask_decoder\.word_maps\.", False),
    ({"mask_decoder": "concatenated"}, r"mask_decoder\.word_maps\.", False),
    ({"mask_decoder": "decoder_only"}, r"mask_decoder\.word_maps\.", True),
    ({}, r"decoder_layers\.2\.feed_forward", True),
    ({"decoder_ffn_dim": 0}, r"decoder_layers\.\d\.feed_forward", False),
    ({}, r"text_encoder|(word|sentence)_projection", False),
    ({"text_config": TINY_BERT}, r"word_vectors|unknown_word|_recurrent", False),
    ({"text_config": TINY_BERT}, r"pooler", False),
    ({"backbone_config": TINY_SWIN}, r"backbone\.swin\.layernorm", False),
]


@pytest.mark.parametrize(("settings", "pattern", "expected"), LAYERS)
def test_layers_that_a_variant_does_not_use_do_not_exist_in_it(settings, pattern, expected):
    names = M3DecForImageSegmentation(variant(**settings)).state_dict()
    assert any(re.search(pattern, name) for name in names) == expected


@pytest.mark.parametrize(
    ("settings", "channels"),
    [({}, 20), ({"max_words": 15}, 15), ({"mask_decoder": "concatenated"}, 64), ({"mask_decoder": "decoder_only"}, 20)],
)
def test_the_first_convolution_has_a_channel_for_each_word_or_for_words_and_pixels(settings, channels):
    model = M3DecForImageSegmentation(variant(**settings))
    assert model.mask_decoder.convolutions[0].in_channels == channels


@pytest.mark.parametrize(
    ("settings", "inputs"),
    [
        ({}, 16),
        ({"feature_stride": 8}, 64),
        ({"mutual_attention": "independent"}, 16),
        ({"mutual_attention": "language_attended_vision"}, 32),
        ({"mutual_attention": "vision_attended_language"}, 32),
    ],
)
def test_only_a_product_of_both_modalities_is_tied_to_the_grid(settings, inputs):
    model = M3DecForImageSegmentation(variant(**settings))
    assert {layer.mutual_attention.output.in_features for layer in model.model.decoder_layers} == {inputs}


# Swin-B of 384 pixels and BERT-base, as their hub pages describe them
SWIN_BASE = SwinConfig(
    image_size=384,
    embed_dim=128,
    depths=[2, 2, 18, 2],
    num_heads=[4, 8, 16, 32],
    window_size=12,
    out_features=["stage2", "stage3", "stage4"],
)
PAPER_SIZES = {
    "Darknet-53 and LSTM, 416 px": lambda: M3DecConfig(),
    "Swin-B and BERT, 480 px": lambda: M3DecConfig(
        backbone_config=SWIN_BASE, text_config=BertConfig(), image_size=480, max_words=20
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("make_config", PAPER_SIZES.values(), ids=PAPER_SIZES)
def test_a_model_of_the_papers_size_takes_a_training_step_at_batch_two(make_config):
    config = make_config()
    side, words = config.image_size, config.max_words
    torch.manual_seed(0)
    model = M3DecForImageSegmentation(config).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    mask = (torch.arange(words) < torch.tensor([[words], [4]])).long()
    outputs = model(
        pictures(2, side),
        torch.randint(2, 10_000, (2, words)),
        mask,
        labels=(pictures(2, side)[:, 0] > 0.5).float(),
    )
    assert outputs.logits.shape == (2, side // 2, side // 2) and outputs.loss.isfinite()
    before = model.mask_decoder.last_convolution.weight.detach().clone()
    outputs.loss.backward()
    optimizer.step()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad and p.numel()
    )
    assert not torch.equal(model.mask_decoder.last_convolution.weight, before)
