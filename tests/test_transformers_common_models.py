"""transformers' own tests of models and configs hold for m3dec's."""

import unittest

import pytest
from test_modeling_m3dec import TINY_BERT, TINY_SWIN, expressions, pictures, tiny_config
from transformers_tests import PACKAGE, STAND_INS, common_tests, failures

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecModel

pytestmark = pytest.mark.slow

# They take 15 words from a vocabulary, and expect text features as wide as the text encoder, which ours need not be.
LARGER_BERT = TINY_BERT | {"vocab_size": 99, "num_hidden_layers": 2, "hidden_size": 32}
KINDS = {
    "word vectors": {},
    "BERT": {"text_config": LARGER_BERT},
    "Swin and BERT": {"text_config": LARGER_BERT, "backbone_config": TINY_SWIN},
}
# Theirs: what gives a Swin's first features gives a tuple, for which transformers' hook is not made. A SwinModel alone
# fails in the same way; its own tests never come there.
THEIRS = {"Swin and BERT": {"test_enable_input_require_grads_with_gradient_checkpointing"}}
# Theirs: they ask how wide the features are of a text_config, and with word vectors there is none.
THEIRS["word vectors"] = {"test_get_text_features_output_0", "test_get_text_features_output_2"}


class Tester:
    """What the tests ask about the model: its config, its inputs, and some sizes."""

    batch_size, seq_length, is_training = 3, 7, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, settings: dict):
        self.settings = {"vocab_size": 99, "num_encoder_layers": 2} | settings

    def get_config(self) -> M3DecConfig:
        return tiny_config(**self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[M3DecConfig, dict]:
        ids, mask = expressions(7, 7, 7)
        return self.get_config(), {"pixel_values": pictures(3), "input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_are_ones_as_transformers_tests_them(kind, request, monkeypatch):
    common = common_tests("test_modeling_common", request.config.cache)
    # In a list of transformers' own: base models, which have no loss.
    monkeypatch.setattr(common, "MODEL_MAPPING_NAMES", common.MODEL_MAPPING_NAMES | {"m3dec": "M3DecModel"})

    class Models(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes = (M3DecModel, M3DecForImageSegmentation)
        additional_model_inputs = ("input_ids",)
        test_can_init_all_missing_weights_before_2023 = True  # the year of our files is not in them
        skip_test_image_features_output_shape = True  # F_enc is hidden_size wide, and not as wide as the backbone
        _is_composite = True

        def setUp(self):
            self.model_tester = Tester(KINDS[kind])

        def _text_features_get_expected_num_attentions(self, model_tester=None):
            return 2 if kind != "word vectors" else 0  # a recurrent encoder has none

        def _text_features_get_expected_num_hidden_states(self, model_tester=None):
            return 3 if kind != "word vectors" else 2  # its word vectors, and what it makes of them

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
            if return_labels and model_class is M3DecForImageSegmentation:
                inputs["labels"] = (inputs["pixel_values"][:, 0] > 0.5).float()
            return inputs

    failed = failures(Models)
    # Ours: padding on the left is refused.
    assert all("padded on the right" in error for name, error in failed.items() if "_pad_left" in name)
    assert {name for name in failed if "_pad_left" not in name} == THEIRS.get(kind, set())


def test_the_config_is_one_as_transformers_tests_them(request, monkeypatch):
    monkeypatch.setitem(STAND_INS, f"{PACKAGE}.utils.test_configuration_utils", {"config_common_kwargs": {}})
    common = common_tests("test_configuration_common", request.config.cache)

    class Config(unittest.TestCase):
        def test_config(self):
            sizes = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
            common.ConfigTester(self, M3DecConfig, common_properties=sizes, hidden_size=64).run_common_tests()

        def test_config_with_bert(self):
            tester = common.ConfigTester(self, M3DecConfig, common_properties=[], **Tester(KINDS["BERT"]).settings)
            tester.create_and_test_config_from_and_save_pretrained_composite()

    assert failures(Config) == {}
