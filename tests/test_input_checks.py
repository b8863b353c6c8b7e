"""Values are checked with at most two waits for the device a forward, and none of them lies in the layers."""

import pytest
import torch
from test_modeling_m3dec import expressions, model_of, pictures, tiny_model, training_batch
from torch.profiler import ProfilerActivity, profile

READ = "aten::_local_scalar_dense"


def reads_of(call) -> int:
    """How many scalars `call` reads from the device; on a GPU it waits for each."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    return sum(event.name == READ for event in profiler.events())


def inputs_of(count: int, with_labels: bool) -> dict[str, torch.Tensor]:
    ids, mask = expressions(*([3, 7, 5, 4, 2, 6, 1, 7][:count]))
    index = torch.arange(count) % 2
    inputs = {"pixel_values": pictures(2), "input_ids": ids, "attention_mask": mask, "image_index": index}
    return inputs | ({"labels": torch.ones(count, 64, 64)} if with_labels else {})


@torch.no_grad()
@pytest.mark.parametrize("with_labels", [False, True], ids=["no labels", "labels"])
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("kind", ["lstm", "decoder_only"])
def test_a_forward_reads_once_for_its_inputs_and_once_for_its_labels(kind, count, with_labels):
    model, inputs = model_of(kind), inputs_of(count, with_labels)
    assert reads_of(lambda: model(**inputs)) == 1 + with_labels


def test_in_training_a_forward_reads_no_more():
    model = tiny_model().train()
    assert reads_of(lambda: model(**training_batch())) == 2


def test_a_read_within_a_layer_would_be_counted():
    model, inputs = model_of("lstm"), inputs_of(1, False)
    reads = []
    hook = model.model.decoder_layers[0].register_forward_hook(lambda *_: reads.append(torch.ones(1).item()))
    with torch.no_grad():
        assert reads_of(lambda: model(**inputs)) == 2
    hook.remove()


@torch.no_grad()
def test_the_first_of_several_wrong_values_is_named_and_nothing_is_computed():
    model, inputs = model_of("lstm"), inputs_of(2, False)
    inputs["attention_mask"][1] = 0
    inputs["image_index"][0] = 2
    hook = model.model.vision_encoder.register_forward_hook(lambda *_: pytest.fail("the image was encoded"))
    with pytest.raises(ValueError, match=r"all 0 in the rows \[1\]"):
        model(**inputs)
    hook.remove()
