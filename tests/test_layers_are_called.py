"""Every layer is called, at every image size: adapters around them learn, and weights may lie elsewhere till then."""

import copy

import accelerate
import pytest
import torch
from test_modeling_m3dec import KINDS, assert_close, expressions, model_of, pictures, tiny_model, training_batch
from torch import nn

# A row of each table, with both text sides; with all layers in two of them.
SOME_KINDS = pytest.mark.parametrize("kind", ["lstm", "bert", "independent", "concatenated", "decoder_only"])


class LowRank(nn.Module):
    """A layer with a term of low rank beside it, written as adapters are: it knows the layer's arguments alone."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int = 2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            self.down = nn.Conv2d(layer.in_channels, rank, *geometry, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs):
        return self.layer(inputs) + self.up(self.down(inputs))

    def merged(self) -> torch.Tensor:
        """The one weight that does what both do."""
        return self.layer.weight + (self.up.weight.flatten(1) @ self.down.weight.flatten(1)).view_as(self.layer.weight)


def adapted(model: nn.Module) -> nn.Module:
    """A copy, frozen, with each linear layer and each convolution in an adapter."""
    model = copy.deepcopy(model).requires_grad_(False)
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                setattr(module, name, LowRank(layer))
    return model


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


@SOME_KINDS
@pytest.mark.parametrize("side", [64, 96, 32])
def test_adapters_that_say_nothing_yet_change_nothing_and_all_of_them_learn(kind, side):
    model, (ids, mask) = adapted(model_of(kind)), expressions(3, 7)
    with torch.inference_mode():
        expected = model_of(kind)(pictures(2, side), ids, mask).logits
        assert_close(model(pictures(2, side), ids, mask).logits, expected, tolerance=1e-6)
    adapters = adapters_of(model)
    layers = {"mutual_attention.output", "mask_decoder.convolutions.2", "mask_decoder.last_convolution"}
    assert all(any(name.endswith(layer) for name in adapters) for layer in layers)
    model.train()(**training_batch(side)).loss.backward()
    assert [name for name, adapter in adapters.items() if not adapter.up.weight.grad.any()] == []


@torch.inference_mode()
@SOME_KINDS
@pytest.mark.parametrize("side", [64, 96])
def test_an_adapter_beside_a_layer_is_the_layer_with_the_sum_of_both_weights(kind, side):
    model, (ids, mask) = adapted(model_of(kind)), expressions(3, 7)
    merged = copy.deepcopy(model_of(kind))
    torch.manual_seed(0)
    for name, adapter in adapters_of(model).items():
        if "backbone" not in name:  # where a convolution may have groups
            nn.init.normal_(adapter.up.weight, std=0.05)
            merged.get_submodule(name).weight.copy_(adapter.merged())
    plain = model_of(kind)(pictures(2, side), ids, mask).logits
    ours = model(pictures(2, side), ids, mask).logits
    assert (ours - plain).abs().max() > 0.01
    assert_close(ours, merged(pictures(2, side), ids, mask).logits, tolerance=1e-4)


def on_disk(model, folder):
    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def partly_on_disk(model, folder):
    places = {"model": "cpu", "mask_decoder": "disk", "language_reconstruction": "disk"}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def on_cpu(model, folder):
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


@torch.inference_mode()
@pytest.mark.parametrize("offload", [on_cpu, on_disk, partly_on_disk])
@pytest.mark.parametrize("kind", ["lstm", "gru", "bert", "static", "decoder_only"])
def test_a_model_whose_weights_are_fetched_layer_by_layer_answers_as_the_plain_one(kind, offload, tmp_path):
    model, (ids, mask) = tiny_model(**KINDS[kind]), expressions(3, 7)
    expected = {side: model(pictures(2, side), ids, mask).logits for side in (64, 96)}
    offload(model, tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    for side, logits in expected.items():
        assert torch.equal(model(pictures(2, side), ids, mask).logits, logits)


@torch.inference_mode()
@pytest.mark.parametrize("offload", [on_cpu, on_disk])
@pytest.mark.parametrize("kind", ["lstm", "bert"])
def test_every_module_alone_may_lie_elsewhere(kind, offload, tmp_path):
    (ids, mask), plain = expressions(3, 7), model_of(kind)
    expected, wrong = plain(pictures(2), ids, mask).logits, []
    names = [name for name, module in plain.named_modules() if any(True for _ in module.parameters())]
    for number, name in enumerate(names):
        model = copy.deepcopy(plain)
        offload(model.get_submodule(name), tmp_path / str(number))
        if not torch.equal(model(pictures(2), ids, mask).logits, expected):
            wrong.append(name)
    assert len(names) > 100 and wrong == []


@torch.inference_mode()
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["lstm", "bert"])
def test_an_automatic_device_map_with_little_memory_changes_no_answer(kind, share, tmp_path):
    model, (ids, mask) = model_of(kind), expressions(3, 7)
    model.save_pretrained(tmp_path / "saved")
    memory = {"cpu": int(share * model.get_memory_footprint())}
    places = {"device_map": "auto", "max_memory": memory, "offload_folder": tmp_path / "offloaded"}
    loaded = type(model).from_pretrained(tmp_path / "saved", **places).eval()
    assert "disk" in loaded.hf_device_map.values()
    assert_close(loaded(pictures(2), ids, mask).logits, model(pictures(2), ids, mask).logits)
