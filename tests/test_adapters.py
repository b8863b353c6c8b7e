"""PEFT's adapters: every layer can carry one; it learns, it can be merged, and it comes back from its files."""

import copy

import pytest
import torch
from test_modeling_m3dec import KINDS, assert_close, expressions, model_of, pictures, tiny_config, training_batch
from torch import nn

from m3dec import M3DecForImageSegmentation, hub

peft = pytest.importorskip("peft", reason="peft is not installed; it comes with the extra m3dec[adapters]")

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
ONLY_IN_THE_LOSS = ("language_reconstruction.", "sentence_projection")  # no answer reads them


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


def every_layer() -> list:
    """(kind, layer) for each layer that any kind of model has, each once. Every twelfth is not marked slow."""
    seen = {}
    for kind, settings in KINDS.items():
        with torch.device("meta"):
            for name in layers_of(M3DecForImageSegmentation(tiny_config(**settings))):
                seen.setdefault(name, kind)
    return [
        pytest.param(kind, name, id=f"{kind}-{name}", marks=[pytest.mark.slow] if number % 12 else [])
        for number, (name, kind) in enumerate(seen.items())
    ]


def adapted(model: nn.Module, layers: list[str], init: bool | str = True) -> nn.Module:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=init)
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


@torch.inference_mode()
def answers(model: nn.Module) -> list[torch.Tensor]:
    """Logits at the size that the model is made for, and at another."""
    ids, mask = expressions(3, 7)
    return [model(pixel_values=pictures(2, side), input_ids=ids, attention_mask=mask).logits for side in (64, 96)]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float):
    for our, their in zip(ours, theirs, strict=True):
        assert_close(our, their, tolerance)


def train(model: nn.Module, batch: dict[str, torch.Tensor], steps: int = 2) -> dict[str, bool]:
    """A few loud steps. For each adapter: did a gradient reach it?"""
    model.train()
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    reached = dict.fromkeys((name.split(".lora_")[0] for name in learning), False)
    optimizer = torch.optim.AdamW(learning.values(), lr=0.05)
    for _ in range(steps):
        model(**batch).loss.backward()
        for name, weight in learning.items():
            reached[name.split(".lora_")[0]] |= bool(weight.grad is not None and weight.grad.any())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return reached


def check(model: nn.Module, layers: list[str], folder, answer_reads_them: bool = True, tolerance: float = 1e-5) -> None:
    """What this file's first line says, of adapters at `layers`."""
    plain, tuned = answers(model), adapted(model, layers)
    assert_same(answers(tuned), plain, tolerance)
    reached = train(tuned, training_batch())
    assert len(reached) == len(layers) and all(reached.values()), reached
    learnt = answers(tuned)
    assert any((new - old).abs().max() > tolerance for new, old in zip(learnt, plain, strict=True)) == answer_reads_them
    tuned.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    assert_same(answers(loaded), learnt, tolerance)
    assert_same(answers(tuned.merge_and_unload()), learnt, tolerance)


@pytest.mark.parametrize(("kind", "layer"), every_layer())
def test_an_adapter_at_one_layer(kind, layer, tmp_path):
    """In float64: what some layers of an untrained model change is hardly above the rounding of float32."""
    read = not any(part in layer for part in ONLY_IN_THE_LOSS)
    check(copy.deepcopy(model_of(kind)).double(), [layer], tmp_path, read, tolerance=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_at_all_layers_together(kind, tmp_path):
    check(model_of(kind), layers_of(model_of(kind)), tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_the_answer_by_construction_keeps_it(kind, init):
    """PEFT has PiSSA and OLoRA for linear layers alone."""
    model = model_of(kind)
    linear = [name for name in layers_of(model) if isinstance(model.get_submodule(name), nn.Linear)]
    assert_same(answers(adapted(model, linear, init)), answers(model), 1e-4)


def test_with_gradient_checkpointing_every_adapter_learns():
    """Also those of the image half, whose inputs need no gradient."""
    model = adapted(model_of("lstm"), layers_of(model_of("lstm")))
    model.base_model.model.gradient_checkpointing_enable()
    reached = train(model, training_batch())
    assert any("encoder_layers" in name for name in reached) and all(reached.values()), reached


def test_adapters_at_all_layers_of_a_checkpoint_but_those_that_peft_refuses(tmp_path):
    """PEFT wants a rank that is a multiple of the groups of a convolution, and merges none that has groups."""
    model = M3DecForImageSegmentation.from_pretrained(hub.SCENES_CHECKPOINT)
    grouped = [name for name in layers_of(model) if getattr(model.get_submodule(name), "groups", 1) > 1]
    fixed = "language_reconstruction.projection"  # with reconstruction_target="detached" no gradient may reach it
    check(model, [name for name in layers_of(model) if name not in (*grouped, fixed)], tmp_path)
    assert grouped and all("backbone" in name for name in grouped)
    with pytest.raises(ValueError, match="support is limited to conv layers where the rank is divisible by groups"):
        adapted(model, grouped)
