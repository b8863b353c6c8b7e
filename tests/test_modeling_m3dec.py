"""The laws of the model: what may change its answer and what may not, what is refused, and what survives a file."""

import copy
import re
import socket
from functools import cache, partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from test_processing_m3dec import word_processor
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoProcessor,
    BertConfig,
    BertModel,
    SwinConfig,
    SwinModel,
    Trainer,
    TrainingArguments,
)

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecModel, M3DecProcessor

VOCABULARY = 11
TINY_TIMM = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [2, 3, 4], "features_only": True}
TINY_SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": ["stage2", "stage3", "stage4"],
}
TINY_BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}
# The text sides, and the variants whose sums over words or pixels differ.
KINDS = {
    "lstm": {},
    "gru": {"recurrent_type": "gru"},
    "bert": {"text_config": TINY_BERT},
    "independent": {"mutual_attention": "independent"},
    "language_attended_vision": {"mutual_attention": "language_attended_vision"},
    "vision_attended_language": {"mutual_attention": "vision_attended_language"},
    "static": {"interaction": "static"},
    "concatenated": {"mask_decoder": "concatenated"},
    "decoder_only": {"mask_decoder": "decoder_only"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tiny_config(**settings) -> M3DecConfig:
    tiny = {
        "backbone_config": TINY_TIMM,
        "image_size": 64,
        "hidden_size": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "vocab_size": VOCABULARY,
        "word_vector_size": 5,
        "max_words": 20,
        "mask_decoder_channels": 8,
    }
    return M3DecConfig(**tiny | settings)


def tiny_model(**settings) -> M3DecForImageSegmentation:
    """Untrained, but loud, with biases that are not 0 and batch norms that have seen data; in eval mode."""
    torch.manual_seed(0)
    model = loud(M3DecForImageSegmentation(tiny_config(**settings))).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for seed in range(10):
            model(pictures(4, seed=seed), *expressions(3, 7, 15, 9, seed=seed))
    return model.eval()


def loud(model: M3DecForImageSegmentation) -> M3DecForImageSegmentation:
    """Linear layers as strong as trained ones: as they start, some paths carry too little to be told from rounding."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight, gain=0.5)
    return model


@cache
def model_of(kind: str) -> M3DecForImageSegmentation:
    """One model for all tests that only ask it."""
    return tiny_model(**KINDS[kind])


def pictures(count: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def expressions(*lengths: int, width: int | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random words, one of them unknown, in rows as wide as the longest or as `width`; where there is padding the ids
    are random too."""
    width = width or max(lengths)
    ids = torch.randint(2, VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    ids[0, 1 % width] = 1
    return ids, (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def training_batch(side: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    ids, mask = expressions(3, 7, 15, 1, seed=seed)
    labels = (pictures(4, side, seed)[:, 0] > 0.5).float()
    return {"pixel_values": pictures(4, side, seed), "input_ids": ids, "attention_mask": mask, "labels": labels}


def assert_close(ours, theirs, tolerance=1e-5):
    """Equal but for rounding: `tolerance` is absolute up to values of 1, and a part of the largest value beyond."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# What may change the answer, and what may not


@torch.inference_mode()
@every_kind
@pytest.mark.parametrize("length", [3, 7, 15])
def test_padding_changes_nothing(kind, length):
    model, (ids, mask) = model_of(kind), expressions(length, width=20)
    bare = model(pictures(1), ids[:, :length])
    padded = model(pictures(1), ids, mask)
    assert_close(padded.logits, bare.logits)
    assert_close(padded.last_hidden_state[:, :length], bare.last_hidden_state)
    assert_close(padded.word_features[:, :length], bare.word_features)
    assert_close(padded.sentence_features, bare.sentence_features)


@torch.inference_mode()
@every_kind
def test_what_stands_in_the_padding_changes_nothing(kind):
    model, (ids, mask) = model_of(kind), expressions(3, 7, width=15)
    others = torch.where(mask.bool(), ids, 0)
    assert_close(model(pictures(2), others, mask).logits, model(pictures(2), ids, mask).logits)


@torch.inference_mode()
@every_kind
def test_neighbours_in_the_batch_change_nothing(kind):
    model, images, (ids, mask) = model_of(kind), pictures(4), expressions(3, 7, 15, 1)
    together = model(images, ids, mask).logits
    for n in range(4):
        assert_close(model(images[n, None], ids[n, None], mask[n, None]).logits, together[n, None])


@torch.inference_mode()
@every_kind
def test_in_float64_neither_padding_nor_neighbours_leave_a_trace(kind):
    model, images, (ids, mask) = copy.deepcopy(model_of(kind)).double(), pictures(4).double(), expressions(3, 7, 15, 1)
    together = model(images, ids, mask).logits
    for n, length in enumerate((3, 7, 15, 1)):
        assert_close(model(images[n, None], ids[n, None, :length]).logits, together[n, None], tolerance=1e-13)


@torch.inference_mode()
@every_kind
@pytest.mark.parametrize("length", [3, 7, 15])
def test_every_word_and_the_image_change_the_answer(kind, length):
    model, (ids, _) = model_of(kind), expressions(length)
    logits = model(pictures(1), ids).logits
    for place in range(length):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % VOCABULARY
        assert (model(pictures(1), changed).logits - logits).abs().max() > 1e-4
    assert (model(pictures(1, seed=1), ids).logits - logits).abs().max() > 1e-4


@torch.inference_mode()
@every_kind
def test_image_features_are_of_the_image_alone_to_the_bit(kind):
    model, images = model_of(kind), pictures(2)
    features = model.get_image_features(images).last_hidden_state
    assert features.shape == (2, 16, 32)
    assert torch.equal(model.model.get_image_features(images).last_hidden_state, features)
    for lengths in [(3, 7), (15, 15), (1, 2)]:
        ids, mask = expressions(*lengths, seed=sum(lengths))
        outputs = model(images, ids, mask)
        assert torch.equal(outputs.image_features, features)
        reused = model(image_features=outputs.image_features, input_ids=ids, attention_mask=mask)
        assert torch.equal(reused.logits, outputs.logits) and torch.equal(reused.image_features, features)


@torch.inference_mode()
@every_kind
def test_each_half_gives_what_transformers_expects_of_it_and_the_whole_model_takes_it(kind):
    model, images, (ids, mask) = model_of(kind), pictures(2), expressions(3, 7)
    whole = model(images, ids, mask)
    image = model.get_image_features(images, output_attentions=True, output_hidden_states=True)
    assert [state.shape for state in image.hidden_states] == [(2, 16, 32)] * 2  # F_vis, and what one layer makes of it
    assert torch.equal(image.hidden_states[-1], image.last_hidden_state) and image.pooler_output is None
    assert [weights.shape for weights in image.attentions] == [(2, 4, 16, 16)]
    assert_close(image.attentions[0].sum(dim=-1), torch.ones(2, 4, 16))
    plain = model.get_image_features(images)
    assert plain.hidden_states is plain.attentions is None
    assert torch.equal(model(image_features=plain, input_ids=ids, attention_mask=mask).logits, whole.logits)

    text = model.get_text_features(ids, mask, output_attentions=True, output_hidden_states=True)
    assert torch.equal(text.last_hidden_state, whole.word_features)
    assert torch.equal(text.pooler_output[:, None], whole.sentence_features)
    assert [states.shape[:2] for states in text.hidden_states] == [(2, 7)] * 2
    assert text.attentions == ()  # a BERT gives them with attn_implementation="eager"
    assert isinstance(model.get_image_features(images, return_dict=False), tuple)
    assert isinstance(model.get_text_features(ids, return_dict=False), tuple)
    some = model(images, ids, mask, output_hidden_states=[0, -1]).hidden_states
    assert (
        torch.equal(some[0], whole.word_features) and some[1] is None and torch.equal(some[2], whole.last_hidden_state)
    )
    with pytest.raises(ValueError, match="padded on the right"):
        model.get_text_features(ids, mask.flip(1))
    with pytest.raises(ValueError, match="vocabulary"):
        model.get_text_features(ids + 1000)


@torch.inference_mode()
@every_kind
def test_one_image_with_many_expressions_is_that_many_calls(kind):
    model, image, (ids, mask) = model_of(kind), pictures(1), expressions(3, 7, 15, 1, 8)
    many = model(image, ids, mask)
    assert many.logits.shape == (5, 32, 32) and many.image_features.shape[0] == 1
    for n in range(5):
        assert_close(model(image, ids[n, None], mask[n, None]).logits, many.logits[n, None])


@torch.inference_mode()
@every_kind
def test_several_images_by_image_index_are_that_many_calls(kind):
    model, images, (ids, mask) = model_of(kind), pictures(3), expressions(3, 7, 15, 1, 8)
    index = [2, 0, 2, 1, 0]
    many = model(images, ids, mask, image_index=torch.tensor(index))
    assert many.image_features.shape[0] == 3
    for n, image in enumerate(index):
        assert_close(model(images[image, None], ids[n, None], mask[n, None]).logits, many.logits[n, None])


def test_no_weight_of_the_reconstruction_is_used_at_inference():
    model, batch = tiny_model(), training_batch()
    with torch.no_grad():
        before = model(**batch)
        for parameter in model.language_reconstruction.parameters():
            parameter.fill_(float("nan"))
        after = model(**batch)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.loss, before.loss)
    assert after.reconstruction_loss is None
    assert model.train()(**batch).loss.isnan()  # the poison works


@pytest.mark.parametrize("decoder", ["dynamic_kernels", "decoder_only"])
@pytest.mark.parametrize("trained", [416, 288])
def test_weights_of_one_size_serve_every_square_multiple_of_32(decoder, trained):
    model = tiny_model_of_size(trained, decoder)
    ids, mask = expressions(3, 7)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        for side in range(288, 641, 32):
            logits = model(pictures(1, side), ids, mask).logits
            assert logits.shape == (2, side // 2, side // 2)
            assert logits.isfinite().all() and (logits[0] - logits[1]).abs().max() > 1e-4
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["lstm", "independent", "vision_attended_language", "decoder_only"])
def test_made_for_another_size_a_model_answers_there_as_before_and_can_be_saved(kind, tmp_path):
    for side in (96, 32):
        model, (ids, mask) = tiny_model(**KINDS[kind]), expressions(3, 7)
        with torch.inference_mode():
            before = model(pictures(2, side), ids, mask).logits
        model.set_image_size(side)
        model.save_pretrained(tmp_path / str(side))
        loaded = M3DecForImageSegmentation.from_pretrained(tmp_path / str(side))
        with torch.inference_mode():
            assert_close(loaded(pictures(2, side), ids, mask).logits, before)
        assert (loaded.config.image_size, loaded.config.num_pixels) == (side, (side // 16) ** 2)
        model.train()(**training_batch(side)).loss.backward()


@pytest.mark.parametrize("kind", ["lstm", "decoder_only"])
def test_loaded_for_another_size_a_model_is_the_one_that_is_set_to_it(kind, tmp_path):
    model, inputs = model_of(kind), (pictures(2, 96), *expressions(3, 7))
    model.save_pretrained(tmp_path)
    for ours in (M3DecForImageSegmentation, M3DecModel):
        plain = ours.from_pretrained(tmp_path)
        plain.set_image_size(96)
        loaded, report = ours.from_pretrained(tmp_path, image_size=96, output_loading_info=True)
        assert loaded.config.image_size == 96 and not report["mismatched_keys"]
        with torch.inference_mode():
            assert torch.equal(loaded(*inputs).last_hidden_state, plain(*inputs).last_hidden_state)


def test_a_size_that_no_model_can_be_made_for_is_refused_and_changes_nothing():
    model = tiny_model()
    with pytest.raises(ValueError, match="64 and 96"):
        model.set_image_size(70)
    assert model.config.image_size == 64


@torch.inference_mode()
def test_another_size_sees_the_same_picture():
    """Large plain patches, so that both sizes hold the same picture: resized, the answers nearly agree."""
    model, (ids, mask) = tiny_model_of_size(416, "dynamic_kernels"), expressions(7)
    patches = pictures(1, 4)
    at = {side: F.interpolate(patches, size=(side, side), mode="bilinear") for side in (416, 512)}
    logits = {side: model(image, ids, mask).logits for side, image in at.items()}
    resized = F.interpolate(logits[512][None], size=(208, 208), mode="bilinear", antialias=True)[0]
    correlation = torch.corrcoef(torch.stack([resized.flatten(), logits[416].flatten()]))[0, 1]
    assert correlation > 0.9
    assert (resized - logits[416]).abs().mean() < 0.5 * logits[416].std()


@cache
def tiny_model_of_size(side: int, decoder: str) -> M3DecForImageSegmentation:
    torch.manual_seed(0)
    config = tiny_config(image_size=side, mask_decoder=decoder, hidden_size=16, num_attention_heads=2)
    return M3DecForImageSegmentation(config).eval()


# Attention


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["lstm", "bert"])
def test_sdpa_equals_eager(kind, monkeypatch):
    model = tiny_model(**KINDS[kind], image_size=160)  # 100 pixels: enough keys for the fused kernel
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].shape[-2]) or fused(*a, **k)
    )
    batch = training_batch(160)
    answers, fused_calls = {}, {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        calls.clear()
        answers[implementation] = model(**batch)
        fused_calls[implementation] = calls.count(100)
    assert fused_calls == {"sdpa": 1, "eager": 0}
    assert_close(answers["eager"].logits, answers["sdpa"].logits)
    assert_close(answers["eager"].image_features, answers["sdpa"].image_features)


@torch.inference_mode()
@every_kind
def test_attentions_on_request_have_the_documented_shapes_and_sum_to_one(kind):
    model, (ids, mask) = model_of(kind), expressions(3, 7)
    plain = model(pictures(2), ids, mask)
    asked = model(pictures(2), ids, mask, output_attentions=True, output_hidden_states=True)
    keys = 16 if kind == "vision_attended_language" else 7  # P of a 4 x 4 grid, or T
    assert [a.shape for a in asked.attentions] == [(2, 4, 7, 7)] * 2
    assert [a.shape for a in asked.cross_attentions] == [(2, 4, 7, keys)] * 2
    assert [a.shape for a in asked.mutual_attentions] == [(2, 7, 16)] * 2
    assert [a.shape for a in asked.hidden_states] == [(2, 7, 32)] * 3  # what goes in, and what each of two layers gives
    assert torch.equal(asked.hidden_states[0], asked.word_features)
    assert torch.equal(asked.hidden_states[-1], asked.last_hidden_state)
    for weights in asked.attentions + asked.cross_attentions:
        assert_close(weights.sum(dim=-1), torch.ones(2, 4, 7))
    for weights in asked.attentions + (asked.cross_attentions if keys == 7 else ()):
        assert (weights[0, :, :, 3:] == 0).all()  # nobody looks at padding
    assert plain.attentions is plain.cross_attentions is plain.mutual_attentions is plain.hidden_states is None
    assert_close(asked.logits, plain.logits)


@torch.inference_mode()
def test_attentions_can_be_asked_for_in_the_config_and_come_as_a_tuple_too():
    model, (ids, mask) = tiny_model(), expressions(3, 7)
    model.set_attn_implementation("eager")  # without it the library refuses the next line
    model.config.output_attentions = True
    asked = model(pictures(2), ids, mask)
    assert len(asked.mutual_attentions) == 2
    as_tuple = model(pictures(2), ids, mask, return_dict=False)
    assert torch.equal(as_tuple[0], asked.logits) and len(as_tuple) == len(asked.to_tuple())


@torch.inference_mode()
def test_a_timm_backbone_whose_config_asks_for_attentions_is_asked_for_maps_alone():
    model, (ids, mask) = tiny_model(backbone_config={**TINY_TIMM, "output_attentions": True}), expressions(3, 7)
    assert model.model.vision_encoder.backbone.config.output_attentions
    assert torch.equal(model(pictures(2), ids, mask).logits, model_of("lstm")(pictures(2), ids, mask).logits)


@pytest.mark.parametrize("kind", ["lstm", "gru", "bert"])
def test_under_autocast_a_training_step_differs_by_rounding_only(kind):
    losses = []
    for enabled in (False, True):
        model = tiny_model(**KINDS[kind], dropout=0.0).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model(**training_batch()).loss)
        losses[-1].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert abs(losses[1] - losses[0]) < 0.02 * losses[0]


# Files


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["lstm", "gru", "bert"])
def test_a_saved_model_answers_the_same_to_the_bit(kind, dtype, tmp_path):
    model, (ids, mask) = tiny_model(**KINDS[kind]).to(dtype), expressions(3, 7)
    model.save_pretrained(tmp_path)
    loaded = M3DecForImageSegmentation.from_pretrained(tmp_path, dtype=dtype)
    dtypes = {parameter.dtype for name, parameter in loaded.named_parameters() if "norm.norm" not in name}
    assert dtypes == {dtype} and not loaded.training
    logits = model(pictures(2).to(dtype), ids, mask).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert torch.equal(loaded(pictures(2).to(dtype), ids, mask).logits, logits)
    assert torch.equal(
        M3DecForImageSegmentation.from_pretrained(tmp_path, dtype="auto")
        .eval()(pictures(2).to(dtype), ids, mask)
        .logits,
        logits,
    )


@torch.inference_mode()
@pytest.mark.parametrize("way", ["half", "from_pretrained", "of a file in float16"])
def test_in_float16_m3att_s_variances_of_1e8_stay_finite_and_logits_differ_by_rounding_only(way, tmp_path):
    model, (ids, mask) = tiny_model(), expressions(3, 7)
    for layer in model.model.decoder_layers:  # the sums of a trained model are some 1e4; its batch norm takes them back
        attention = layer.mutual_attention
        for tensor in (attention.output.weight, attention.output.bias, attention.norm.norm.running_mean):
            tensor.mul_(1e4)
        attention.norm.norm.running_var.mul_(1e8)
    expected = model(pictures(2), ids, mask).logits
    half = copy.deepcopy(model).half()
    if way != "half":
        (half if way == "of a file in float16" else model).save_pretrained(tmp_path)
        half = M3DecForImageSegmentation.from_pretrained(tmp_path, dtype=torch.float16)
    logits = half(pictures(2).half(), ids, mask).logits
    assert logits.dtype == torch.float16
    assert (logits - expected).abs().max() < 0.01 * expected.abs().max()


FROZEN = {
    "words": ({}, r"word_vectors\."),
    "backbone": ({"freeze_backbone": True}, r"word_vectors\.|backbone\."),
    "target": ({"reconstruction_target": "detached"}, r"word_vectors\.|language_reconstruction\.projection\."),
    "nothing": ({"freeze_word_vectors": False}, r"^$"),
    "bert": ({"text_config": TINY_BERT}, r"^$"),
    "bert, target": (
        {"text_config": TINY_BERT, "reconstruction_target": "detached"},
        r"sentence_projection\.|language_reconstruction\.projection\.",
    ),
    "bert, no target": ({"text_config": TINY_BERT, "reconstruction_loss_weight": 0}, r"sentence_projection\."),
}


@pytest.mark.parametrize(("settings", "pattern"), FROZEN.values(), ids=FROZEN)
def test_what_is_frozen_is_frozen_after_loading_too_and_nothing_else(settings, pattern, tmp_path):
    built = tiny_model(**settings)
    built.save_pretrained(tmp_path)
    loaded, _ = M3DecForImageSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    for model in (built, M3DecForImageSegmentation.from_pretrained(tmp_path), loaded):
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, _ in model.named_parameters() if re.search(pattern, name)}
        assert (pattern == "^$") == (not frozen)


def test_a_frozen_backbone_does_not_move_in_training(tmp_path):
    tiny_model(freeze_backbone=True).save_pretrained(tmp_path)
    model = M3DecForImageSegmentation.from_pretrained(tmp_path).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**training_batch()).loss.backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "model.vision_encoder.fusion.weight" in moved and "model.vision_encoder.fusion_norm.running_mean" in moved
    assert not {name for name in moved if ".backbone." in name or ".word_vectors." in name}


@torch.inference_mode()
def test_the_auto_classes_know_the_model_and_its_processor(tmp_path):
    model, processor = tiny_model(max_words=15), word_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is M3DecConfig
    loaded = AutoModelForImageSegmentation.from_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path)
    reader = AutoProcessor.from_pretrained(tmp_path)
    assert (type(loaded), type(half), type(reader)) == (M3DecForImageSegmentation, M3DecModel, M3DecProcessor)
    picture = (pictures(1, 48)[0].permute(1, 2, 0) * 40 + 128).clamp(0, 255).byte().numpy()
    batch = reader(images=picture, text=["the red cup", "a cat left of the blue zebra"], return_tensors="pt")
    ours = processor(images=picture, text=["the red cup", "a cat left of the blue zebra"], return_tensors="pt")
    assert all(torch.equal(batch[key], ours[key]) for key in ours)
    expected = model(**ours)
    assert torch.equal(loaded(**batch).logits, expected.logits)
    assert torch.equal(half(**batch).last_hidden_state, expected.last_hidden_state)


# Training


@pytest.mark.parametrize(
    "settings",
    [{}, {"text_config": TINY_BERT, "backbone_config": TINY_SWIN}],
    ids=["resnet and lstm", "swin and bert"],
)
def test_gradient_checkpointing_changes_neither_loss_nor_gradients_nor_buffers(settings):
    results = {}
    for checkpointing in (False, True):
        model = tiny_model(**settings, num_encoder_layers=2)
        if checkpointing:
            model.gradient_checkpointing_enable()
        passes = []
        model.model.encoder_layers[1].feed_forward.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(1)  # of the dropouts
        loss = model.train()(**training_batch()).loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results[checkpointing] = (loss.detach(), gradients, dict(model.named_buffers()), len(passes))
    plain, checkpointed = results[False], results[True]
    assert (plain[3], checkpointed[3]) == (1, 2)  # once more, in the backward pass
    assert torch.equal(plain[0], checkpointed[0])
    assert plain[1].keys() == checkpointed[1].keys() and plain[2].keys() == checkpointed[2].keys()
    for ours, theirs in [(plain[1], checkpointed[1]), (plain[2], checkpointed[2])]:
        assert all(torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7) for name in ours)


def test_a_batch_norm_with_a_frozen_weight_keeps_its_statistics_in_training_and_the_others_do_not():
    model = tiny_model()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    frozen = list(norms)[::2]
    for name in frozen:
        norms[name].requires_grad_(False)
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    model.train()(**training_batch())
    moved = {name for name, norm in norms.items() if not torch.equal(norm.running_mean, before[name])}
    assert len(frozen) > 10 and moved == norms.keys() - set(frozen)


def test_a_model_can_be_saved_into_the_folder_that_it_was_loaded_from(tmp_path):
    """Weights that are mapped from a file would be lost when it is written anew."""
    expected = tiny_model().state_dict()
    tiny_model().save_pretrained(tmp_path)
    loaded = M3DecForImageSegmentation.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    for model in (loaded, M3DecForImageSegmentation.from_pretrained(tmp_path)):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_library_s_trainer_takes_a_step_with_labels_in_and_loss_first(tmp_path):
    model = tiny_model().train()
    rows = [{key: value[n] for key, value in training_batch().items()} for n in range(4)]
    as_tuple = model(**training_batch(), return_dict=False)
    assert as_tuple[0].ndim == 0 and as_tuple[0].requires_grad
    before = model.mask_decoder.last_convolution.weight.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.mask_decoder.last_convolution.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(rows[:3]).predictions.shape == (3, 32, 32)  # the logits alone, of the last batch too
    trainer.save_model(tmp_path / "last")
    M3DecForImageSegmentation.from_pretrained(tmp_path / "last")


def test_one_single_word_cannot_be_normalized_in_training():
    ids, mask = expressions(1)
    with pytest.raises(ValueError, match=r"at least two words .* one expression of one word. Use a larger batch"):
        tiny_model().train()(pictures(1), ids, mask)


# Wrong inputs


def good_inputs() -> dict[str, torch.Tensor]:
    ids, mask = expressions(3, 7)
    return {"pixel_values": pictures(2), "input_ids": ids, "attention_mask": mask}


# What differs from good inputs; what of the rule, of what arrived and of the remedy the message must name
WRONG_INPUTS = {
    "no expression": ({"input_ids": None}, ["half of the input", "input_ids is None", "M3DecProcessor makes it"]),
    "no image": ({"pixel_values": None}, ["half of the input", "are None", "Give pixel_values, or image_features"]),
    "the image twice": ({"image_features": torch.ones(2, 16, 32)}, ["both given", "Leave one out"]),
    "raw pixels of a file": (
        {"pixel_values": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)},
        ["normalized floats", "torch.uint8", "M3DecImageProcessor"],
    ),
    "raw pixels as floats": (
        {"pixel_values": torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64).remainder(256).float()},
        ["must be normalized", "from 0 to 255", "Call M3DecProcessor"],
    ),
    "image features of another width": (
        {"pixel_values": None, "image_features": torch.ones(2, 16, 31)},
        ["(B, P, 32)", "(2, 16, 31)", "get_image_features"],
    ),
    "image features of one image alone": (
        {"pixel_values": None, "image_features": torch.ones(16, 32)},
        ["(B, P, 32)", "(16, 32)", "get_image_features"],
    ),
    "another model's words": (
        {"input_ids": torch.full((2, 7), VOCABULARY)},
        [f"0 to {VOCABULARY - 1}", f"from {VOCABULARY} to {VOCABULARY}", "Use the processor saved with this model"],
    ),
    "left padding": (
        {"attention_mask": torch.tensor([[0, 0, 0, 0, 1, 1, 1], [1] * 7])},
        ["padded on the right", "a 1 after a 0", "padding_side to 'right'"],
    ),
    "a hole": ({"attention_mask": torch.tensor([[1, 0, 1, 0, 0, 0, 0], [1] * 7])}, ["padded on the right"]),
    "a row without words": (
        {"attention_mask": torch.tensor([[1] * 7, [0] * 7])},
        ["at least one word", "all 0 in the rows [1]", "Leave those expressions out"],
    ),
    "a mask of another shape": (
        {"attention_mask": torch.ones(2, 6)},
        ["shape of input_ids, (2, 7)", "it has (2, 6)", "one call of the tokenizer"],
    ),
    "too many words": (
        {"input_ids": torch.full((2, 21), 2), "attention_mask": None},
        ["at most max_words = 20", "input_ids has 21", "Truncate"],
    ),
    "one expression alone": (
        {"input_ids": torch.tensor([2, 3]), "attention_mask": None},
        ["(N, T)", "(2,)", "M3DecProcessor makes them"],
    ),
    "no expressions": (
        {"input_ids": torch.ones(0, 3).long(), "attention_mask": None},
        ["at least one", "(0, 3)", "M3DecProcessor"],
    ),
    "expressions without words": (
        {"input_ids": torch.ones(2, 0).long(), "attention_mask": None},
        ["at least one", "(2, 0)", "M3DecProcessor"],
    ),
    "image_index no whole numbers": ({"image_index": torch.tensor([0.0, 1.0])}, ["whole number", "float32", "Give"]),
    "grey images": ({"pixel_values": torch.ones(2, 1, 64, 64)}, ["(B, 3, S, S)", "(2, 1, 64, 64)"]),
    "labels of 0 and 255": (
        {"labels": torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 64, 32)},
        ["1 on the object", "-100 where no loss", "4096 others", "255 of torch.uint8", "(mask > 0).float()"],
    ),
    "labels divided by 255": ({"labels": torch.ones(2, 64, 64) / 255}, ["8192 others", "0.00392157 of torch.float32"]),
    "labels that int8 cannot hold": ({"labels": -torch.ones(2, 64, 64, dtype=torch.int8)}, ["such as -1", "int8"]),
    "labels that are no numbers": ({"labels": torch.full((2, 64, 64), torch.nan)}, ["8192 others", "such as nan"]),
    "labels that a byte makes of -100": (
        {"labels": torch.full((2, 64, 64), 156, dtype=torch.uint8)},
        ["such as 156"],
    ),
    "image_index too large": (
        {"image_index": torch.tensor([0, 2])},
        ["0 to 1", "from 0 to 2", "Give the image's row"],
    ),
    "image_index negative": (
        {"image_index": torch.tensor([-1, 0])},
        ["0 to 1", "from -1 to 0", "Give the image's row"],
    ),
    "image_index too long": (
        {"image_index": torch.tensor([0, 1, 1])},
        ["each of the 2 expressions", "it is (3,)", "Give the row"],
    ),
    "image_index of two axes": ({"image_index": torch.tensor([[0], [1]])}, ["each of the 2 expressions", "(2, 1)"]),
    "more images than expressions": (
        {"pixel_values": pictures(3)},
        ["3 images and 2 expressions", "Give image_index, (N,) int64"],
    ),
    "labels too few": ({"labels": torch.ones(1, 64, 64)}, ["(N, H, W)", "the 2 expressions", "(1, 64, 64)", "Give an"]),
    "labels of four axes": ({"labels": torch.ones(2, 1, 64, 64)}, ["(N, H, W)", "(2, 1, 64, 64)", "Give an"]),
    "not square": (
        {"pixel_values": torch.ones(2, 3, 64, 96)},
        ["square", "multiple of 32", "(2, 3, 64, 96)", "M3DecImageProcessor"],
    ),
    "a list": ({"input_ids": [[2, 3], [4, 5]]}, ["input_ids must be a tensor", "type list", "return_tensors='pt'"]),
    "an array": ({"labels": np.ones((2, 64, 64))}, ["labels must be a tensor", "type ndarray", "return_tensors='pt'"]),
    "images in a list": ({"pixel_values": [torch.ones(3, 64, 64)]}, ["pixel_values must be a tensor", "type list"]),
    "image_index in a list": ({"image_index": [0, 1]}, ["image_index must be a tensor", "type list"]),
    "all inputs as the first": (
        {"pixel_values": {"pixel_values": pictures(2)}, "input_ids": None},
        ["pixel_values must be a tensor", "type dict", "model(**inputs)"],
    ),
    "no images": (
        {"pixel_values": torch.ones(0, 3, 64, 64), "image_index": torch.tensor([0, 0])},
        ["At least one image", "(0, 3, 64, 64)", "Leave an empty batch out", "one image for each expression"],
    ),
    "one axis too few": (
        {"pixel_values": torch.ones(3, 64, 64)},
        ["(B, 3, S, S)", "(3, 64, 64)", "M3DecImageProcessor"],
    ),
} | {
    f"side {side}": (
        {"pixel_values": torch.ones(2, 3, side, side)},
        ["multiple of 32", f"(2, 3, {side}, {side})", "M3DecImageProcessor"],
    )
    for side in (0, 1, 31, 63, 65, 80, 300, 417)
}


@torch.inference_mode()
@pytest.mark.parametrize(("difference", "words"), WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_a_wrong_input_is_answered_with_the_rule_what_arrived_and_the_remedy(difference, words):
    with pytest.raises(ValueError) as error:
        model_of("lstm")(**good_inputs() | difference)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("out_indices", "words"),
    [
        ([1, 2, 3], ["strides 8, 16 and 32", "[4, 8, 16]", "Choose others by out_indices"]),
        ([3, 4], ["three levels, of strides 8, 16 and 32", "gives 2", "out_indices (timm) or out_features"]),
    ],
)
def test_a_backbone_of_other_levels_is_refused(out_indices, words):
    with pytest.raises(ValueError) as error:
        M3DecForImageSegmentation(tiny_config(backbone_config=TINY_TIMM | {"out_indices": out_indices}))(
            **good_inputs()
        )
    assert [word for word in words if word not in str(error.value)] == []


# Pretrained parts


def parts_of(model):
    return model.model.vision_encoder.backbone, model.model.language_encoder


@pytest.mark.parametrize("spelling", ["features", "classifier", "folder", "name"])
def test_a_timm_backbone_starts_from_its_weights_however_they_are_spelt(spelling, tmp_path, no_network, monkeypatch):
    options = {} if spelling == "classifier" else {"features_only": True, "out_indices": (2, 3, 4)}
    trained = timm.create_model("test_resnet", **options)
    for tensor in trained.state_dict().values():
        tensor.add_(1)  # statistics too, so that a fresh model has none of these values
    source = trained.state_dict()
    if spelling == "folder":
        donor = AutoBackbone.from_config(tiny_config().backbone_config)
        donor.load_state_dict({f"_backbone.{key}": tensor for key, tensor in source.items()})
        donor.save_pretrained(tmp_path)
        source = tmp_path
    if spelling == "name":  # timm fetches nothing, but loads a file as it loads what it fetched
        torch.save(source, tmp_path / "weights.pth")
        overlay = {"file": str(tmp_path / "weights.pth"), "hf_hub_id": None, "url": ""}
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, pretrained_cfg_overlay=overlay))
        source = "test_resnet.r160_in1k"
    model = M3DecForImageSegmentation.from_pretrained_parts(tiny_config(), backbone=source)
    plain = {key.replace(".", "_"): tensor for key, tensor in trained.state_dict().items()}
    loaded = parts_of(model)[0].state_dict()
    assert len(loaded) > 50
    for key, tensor in loaded.items():
        assert torch.equal(tensor, plain[key.removeprefix("_backbone.").replace(".", "_")])
    assert all(p.requires_grad for p in parts_of(model)[0].parameters())


def test_word_vectors_start_from_a_tensor_and_unknown_words_from_its_mean():
    vectors = torch.randn(VOCABULARY, 5)
    vectors[:2] = 0  # [PAD] and [UNK] have none
    model = M3DecForImageSegmentation.from_pretrained_parts(tiny_config(), word_vectors=vectors)
    language = parts_of(model)[1]
    assert torch.equal(language.word_vectors.weight, vectors) and not language.word_vectors.weight.requires_grad
    assert_close(language.unknown_word.detach(), vectors[2:].mean(dim=0))
    assert language.unknown_word.requires_grad


@pytest.mark.parametrize("source", ["folder", "state dict"])
def test_a_text_encoder_starts_from_a_folder_or_a_state_dict(source, tmp_path, no_network):
    bert = BertModel(BertConfig(**TINY_BERT))
    bert.save_pretrained(tmp_path)
    config = tiny_config(text_config=TINY_BERT)
    given = tmp_path if source == "folder" else bert.state_dict()
    model = M3DecForImageSegmentation.from_pretrained_parts(config, text_encoder=given)
    loaded = parts_of(model)[1].text_encoder.state_dict()
    assert all(torch.equal(tensor, bert.state_dict()[key]) for key, tensor in loaded.items())
    assert not [key for key in loaded if "pooler" in key]


def test_a_swin_backbone_starts_from_the_folder_of_a_swin_model(tmp_path, no_network):
    swin = SwinModel(SwinConfig(**TINY_SWIN))
    swin.save_pretrained(tmp_path)
    model = M3DecForImageSegmentation.from_pretrained_parts(
        tiny_config(backbone_config=TINY_SWIN), backbone=str(tmp_path)
    )
    loaded = parts_of(model)[0].state_dict()
    theirs = {f"swin.{key}": tensor for key, tensor in swin.state_dict().items()}
    assert all(torch.equal(loaded[key], theirs[key]) for key in loaded if key.startswith("swin."))
    new = {key for key in loaded if not key.startswith("swin.")}
    assert len(new) == 6 and all("hidden_states_norms" in key for key in new)


def bert_folder(folder, drop=None, **changes):
    """A saved BertModel, of another shape or without the tensors whose name has `drop` in it."""
    bert = BertModel(BertConfig(**TINY_BERT | changes))
    kept = {key: tensor for key, tensor in bert.state_dict().items() if drop is None or drop not in key}
    bert.save_pretrained(folder, state_dict=kept)
    return folder


def resnet_weights(drop=None):
    weights = timm.create_model("test_resnet").state_dict()
    return {key: tensor for key, tensor in weights.items() if drop is None or drop not in key}


WORD_VECTORS = torch.ones(VOCABULARY, 5)
WRONG_PARTS = {
    "word vectors of nothing": (
        {},
        lambda folder: {"word_vectors": torch.zeros(VOCABULARY, 5)},
        ["finite and not all 0", f"0 of {VOCABULARY} rows", "Read them"],
    ),
    "a tensor of the backbone is missing": (
        {},
        lambda folder: {"backbone": resnet_weights(drop="layer4.0.conv2.weight")},
        ["lack 1 of its", "layer4.0.conv2.weight", "architecture that the config names"],
    ),
    "another architecture": (
        {},
        lambda folder: {"backbone": timm.create_model("test_efficientnet").state_dict()},
        ["backbone lack", "architecture that the config names"],
    ),
    "a backbone of another width": (
        {},
        lambda folder: {"backbone": resnet_weights() | {"layer1.0.conv1.weight": torch.ones(7, 3, 3, 3)}},
        ["another shape in 1 tensors", "(7, 3, 3, 3)"],
    ),
    "a tensor of the text encoder is missing": (
        {"text_config": TINY_BERT},
        lambda folder: {"text_encoder": bert_folder(folder, drop="query.weight")},
        ["text_encoder lack 1 of its", "query.weight"],
    ),
    "a text encoder of another width": (
        {"text_config": TINY_BERT},
        lambda folder: {"text_encoder": bert_folder(folder, intermediate_size=24)},
        ["text_encoder have another shape", "(24, 16)", "(16, 16)"],
    ),
    "word vectors of another shape": (
        {},
        lambda folder: {"word_vectors": WORD_VECTORS[:, :4]},
        ["(vocab_size, word_vector_size) = (11, 5)", "(11, 4)", "Set these two fields"],
    ),
    "word vectors for BERT": (
        {"text_config": TINY_BERT},
        lambda folder: {"word_vectors": WORD_VECTORS},
        ["recurrent text side", "text_config is set", "Give one"],
    ),
    "a text encoder without its config": (
        {},
        lambda folder: {"text_encoder": bert_folder(folder)},
        ["text_config is None", "Set it to the encoder's config"],
    ),
}


@pytest.mark.parametrize(("settings", "part", "words"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_a_part_that_does_not_fit_is_refused(settings, part, words, tmp_path, no_network):
    with pytest.raises(ValueError) as error:
        M3DecForImageSegmentation.from_pretrained_parts(tiny_config(**settings), **part(tmp_path))
    assert [word for word in words if word not in str(error.value)] == []


@torch.inference_mode()
def test_the_slope_that_darknet_weights_need_survives_a_file(tmp_path):
    darknet = TINY_TIMM | {"backbone": "darknet17", "out_indices": [3, 4, 5]}
    (ids, mask), logits = expressions(3, 7), {}
    for slope in (None, 0.1):
        torch.manual_seed(0)
        model = M3DecForImageSegmentation(tiny_config(backbone_config=darknet, backbone_leaky_relu_slope=slope)).eval()
        logits[slope] = model(pictures(2), ids, mask).logits
    model.save_pretrained(tmp_path)
    loaded = M3DecForImageSegmentation.from_pretrained(tmp_path)
    slopes = [module.negative_slope for module in loaded.modules() if isinstance(module, nn.LeakyReLU)]
    assert len(slopes) > 5 and set(slopes) == {0.1}
    assert torch.equal(loaded(pictures(2), ids, mask).logits, logits[0.1])
    assert not torch.equal(logits[None], logits[0.1])
