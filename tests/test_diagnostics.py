"""The diagnostics of a training say what they claim to: on layers made dead, even, sharp, deaf or able to rebuild."""

import json
import math

import pytest
import torch
from test_train import recipe  # noqa: F401
from torch.nn.functional import pad

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples import train
from m3dec.examples.evaluation.results import read_rows
from m3dec.examples.evaluation.tables import by_kind
from m3dec.examples.training.diagnostics import IMAGES, diagnose, evenness, few_batches, gradient_norms
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import write_scenes

TINY = {
    "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet10t", "out_indices": [2, 3, 4]},
    "image_size": 64,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "word_vector_size": 8,
    "vocab_size": 30,
    "mask_decoder_channels": 8,
}


def tiny_model(**settings) -> M3DecForImageSegmentation:
    torch.manual_seed(0)
    model = M3DecForImageSegmentation(M3DecConfig(**TINY, **settings))
    for layer in model.model.decoder_layers:
        torch.nn.init.normal_(layer.mutual_attention.norm.norm.bias)  # so that ReLU passes half of the channels
    return model


def tiny_batches(lengths: tuple[int, ...] = (5, 3, 2, 4)) -> list[dict]:
    """Two batches, of four expressions about two images each."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = [torch.randint(2, 30, mask.shape, generator=generator).masked_fill(~mask, 0) for _ in range(2)]
    images = [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(2)]
    shared = {"attention_mask": mask.long(), "image_index": torch.tensor([0, 0, 1, 1])}
    return [{"input_ids": one, "pixel_values": image, **shared} for one, image in zip(ids, images, strict=True)]


def named(found: dict[str, float], name: str) -> list[float]:
    return [value for key, value in found.items() if key.startswith(f"{name}/")]


def test_a_layer_is_silent_whose_output_is_zero_and_no_other():
    model = tiny_model()
    assert named(diagnose(model, tiny_batches()), "silent") == [0, 0, 0]
    norm = model.model.decoder_layers[1].mutual_attention.norm.norm
    torch.nn.init.constant_(norm.bias, -1e6)  # nothing of it passes the ReLU
    assert named(diagnose(model, tiny_batches()), "silent") == [0, 1, 0]


def test_a_layer_that_is_silent_for_one_expression_of_four_is_silent_for_a_quarter():
    model = tiny_model()

    def silence(layer, inputs, outputs):
        return outputs[0] * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None, None], outputs[1]

    model.model.decoder_layers[2].mutual_attention.register_forward_hook(silence)
    assert named(diagnose(model, tiny_batches()), "silent") == [0, 0, 0.25]


def test_what_stands_on_padding_does_not_make_a_layer_loud():
    model = tiny_model()

    def only_padding(layer, inputs, outputs):
        return outputs[0].masked_fill(inputs[2][..., None], 0.0) + 1e3 * ~inputs[2][..., None], outputs[1]

    model.model.decoder_layers[0].mutual_attention.register_forward_hook(only_padding)
    assert named(diagnose(model, tiny_batches()), "silent") == [1, 0, 0]


@pytest.mark.parametrize("interaction", ["iterative", "static", "none"])
def test_the_gates_are_those_of_the_blocks(interaction):
    model = tiny_model(interaction=interaction)
    blocks = model.model.interactions
    for block, value in zip(blocks, (0.0, -0.25), strict=False):
        torch.nn.init.constant_(block.interaction_weight, value)
    found = diagnose(model, tiny_batches())
    assert named(found, "imi_gate") == [0.0, -0.25][: len(blocks)]
    shares = named(found, "imi_share")
    assert len(shares) == len(blocks) and shares[:1] == [0.0][: len(blocks)] and all(share > 0 for share in shares[1:])


def test_the_share_of_an_injection_is_that_of_its_norm():
    model = tiny_model(interaction="static")  # what is injected are the words themselves
    found = []
    model.model.decoder_layers[0].register_forward_hook(lambda layer, inputs, outputs: found.append(outputs[0]))
    batches = tiny_batches()[:1]
    mask = batches[0]["attention_mask"].bool()
    share = diagnose(model, batches)["imi_share/1"]
    words = model(**batches[0]).word_features
    ratios = [0.1 * w[m].norm() / q[m].norm() for w, q, m in zip(words, found[0], mask, strict=True)]
    assert share == pytest.approx(sum(ratios).item() / 4, rel=1e-4)


@pytest.mark.parametrize("variant", ["shared", "independent", "language_attended_vision", "vision_attended_language"])
def test_attention_without_keys_is_even_over_words_and_positions_and_padding_does_not_count(variant):
    model = tiny_model(mutual_attention=variant)
    for layer in model.model.decoder_layers:
        for name, child in layer.mutual_attention.named_children():
            if name.endswith("word_key"):
                torch.nn.init.zeros_(child.weight)
                torch.nn.init.zeros_(child.bias)
    found = diagnose(model, tiny_batches())
    over_words, over_positions = named(found, "word_entropy"), named(found, "position_entropy")
    assert over_words == pytest.approx([] if variant == "language_attended_vision" else [1] * 3, abs=1e-5)
    assert over_positions == pytest.approx([] if variant == "vision_attended_language" else [1] * 3, abs=1e-5)


@pytest.mark.parametrize("variant", ["shared", "independent", "language_attended_vision", "vision_attended_language"])
def test_padding_changes_no_diagnosis(variant):
    model = tiny_model(mutual_attention=variant)
    for name, parameter in model.named_parameters():
        if name.endswith("key.weight"):
            torch.nn.init.normal_(parameter)  # so that attention is uneven
    batches = tiny_batches()
    padded = [
        {name: pad(tensor, (0, 3)) if tensor.shape == (4, 5) else tensor for name, tensor in batch.items()}
        for batch in batches
    ]
    found = diagnose(model, batches)
    assert diagnose(model, padded) == pytest.approx(found, rel=1e-4)
    assert all(value < 0.99 for value in named(found, "word_entropy") + named(found, "position_entropy"))


def test_the_second_keys_of_independent_attention_are_those_that_look_at_words():
    model = tiny_model(mutual_attention="independent")
    attention = model.model.decoder_layers[0].mutual_attention
    for parameter in attention.second_pixel_key.parameters():
        torch.nn.init.zeros_(parameter)
    for key in (attention.second_word_key, attention.word_key, attention.pixel_key):
        torch.nn.init.normal_(key.weight, std=100)
    found = diagnose(model, tiny_batches())
    assert found["word_entropy/1"] == pytest.approx(1, abs=1e-5) and found["position_entropy/1"] < 0.5


def test_evenness_is_an_entropy_over_what_is_not_masked():
    shares = torch.tensor([[0.5, 0.25, 0.25, 0.9], [1.0, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2], [0.7, 0.1, 0.1, 0.1]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    found = evenness(shares.clamp(min=1e-30).log(), mask)
    assert found[:3].tolist() == pytest.approx([1.5 * math.log(2) / math.log(3), 0, 1], abs=1e-5)
    assert math.isnan(found[3])  # one word: there is nothing to choose


def test_expressions_of_one_word_say_nothing_about_the_attention_over_words():
    model = tiny_model()
    together, alone = (diagnose(model, tiny_batches(lengths)) for lengths in ((5, 3, 1, 1), (1, 1, 1, 1)))
    assert all(0 < value < 1.0001 for value in named(together, "word_entropy"))
    assert all(math.isnan(value) for value in named(alone, "word_entropy"))


def test_a_reconstruction_of_its_own_expression_has_no_error_and_of_another_has_one(monkeypatch):
    model = tiny_model()
    found = diagnose(model, tiny_batches())
    assert found["lfr_error/right"] > 0 and found["lfr_error/shuffled"] > 0
    lfr, targets = model.language_reconstruction, []
    project = lfr.project
    monkeypatch.setattr(lfr, "project", lambda *inputs: targets.append(project(*inputs)) or targets[-1])
    monkeypatch.setattr(lfr, "reconstruct", lambda *inputs: targets[-1])
    found = diagnose(model, tiny_batches())
    differences = [(one - one.roll(1, dims=0)).square().mean().item() for one in targets]
    assert found["lfr_error/right"] == 0
    assert found["lfr_error/shuffled"] == pytest.approx(sum(differences) / 2)
    assert not named(diagnose(tiny_model(reconstruction_loss_weight=0), tiny_batches()), "lfr_error")


def test_the_gradient_norms_of_the_parts_make_up_that_of_the_model():
    model = tiny_model().train()
    model(**tiny_batches()[0], labels=torch.ones(4, 64, 64)).loss.backward()
    norms = gradient_norms(model)
    assert len(norms) == 6 and all(norm > 0 for norm in norms.values())
    whole = torch.nn.utils.get_total_norm([one.grad for one in model.parameters() if one.grad is not None])
    assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(whole.item(), rel=1e-5)


def test_the_batches_are_always_the_same_and_from_all_over_the_data(tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 1, "val": 50})
    val = load_referring_dataset("refer", root=tmp_path, dataset="scenes", split_by="scenes")["val"]
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT)
    first, again = (few_batches(val, processor, model.config) for _ in range(2))
    assert [len(batch["pixel_values"]) for batch in first] == [IMAGES] * 4
    for one, other in zip(first, again, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert len({image.sum().item() for batch in first for image in batch["pixel_values"]}) > 20  # images, not one
    assert diagnose(model, first) == diagnose(model, again)
    assert len(few_batches(val.select(range(2)), processor, model.config)) < 4


def test_a_training_writes_them_into_its_log_and_its_last_answers_beside_it(recipe, tmp_path):  # noqa: F811
    train.main([str(recipe), "--output_dir", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert len(named(line, "gradient_norm")) == (0 if "figures" in line else 6)
        measured = [len(named(line, name)) for name in ("silent", "word_entropy", "position_entropy", "imi_share")]
        assert measured == ([3, 3, 3, 2] if "figures" in line else [0] * 4)
    assert lines[-1]["lfr_error/right"] >= 0
    answers = read_rows(tmp_path / "rows.parquet")
    assert by_kind(answers.results) == lines[-1]["figures"] and answers.split == "val"
