"""The defaults are the paper's, settings survive a file, and those that contradict each other are answered back."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from test_modeling_m3dec import TINY_BERT, TINY_SWIN, TINY_TIMM
from transformers import AutoConfig, BertConfig, SwinConfig

from m3dec.configuration.configuration_m3dec import M3DecConfig

# § III, § IV-A and the best rows of Tables I to III.
PAPER = {
    "image_size": 416,
    "hidden_size": 256,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "num_attention_heads": 8,
    "max_words": 15,
    "word_vector_size": 300,
    "recurrent_type": "lstm",
    "mutual_attention": "shared",
    "interaction": "iterative",
    "mask_decoder": "dynamic_kernels",
    "mask_decoder_channels": 512,
    "mask_loss_weight": 1.0,
    "reconstruction_loss_weight": 0.1,
    "dice_loss_weight": 0.0,
    "text_config": None,
}


@pytest.mark.parametrize(("field", "value"), PAPER.items())
def test_defaults_are_the_papers(field, value):
    assert getattr(M3DecConfig(), field) == value


def test_the_default_backbone_is_darknet53_at_strides_8_16_32():
    backbone = M3DecConfig().backbone_config
    assert (backbone.model_type, backbone.backbone, list(backbone.out_indices)) == (
        "timm_backbone",
        "darknet53",
        [3, 4, 5],
    )


@pytest.mark.parametrize(
    ("settings", "side"),
    [({}, 26), ({"image_size": 480}, 30), ({"feature_stride": 8}, 52), ({"image_size": 64, "feature_stride": 16}, 4)],
)
def test_the_grid_follows_from_size_and_stride(settings, side):
    config = M3DecConfig(**settings)
    assert (config.grid_size, config.num_pixels) == (side, side * side)


# settings; what of the rule, the value and the remedy the message must name
CONTRADICTIONS = [
    ({"image_size": 400}, ["multiple of 32", "400", "384 and 416"]),
    ({"image_size": 0}, ["positive multiple of 32", "it is 0", "32 and 64"]),
    ({"feature_stride": 32}, ["feature_stride", "16", "or 8", "not 32"]),
    ({"hidden_size": 100}, ["hidden_size", "num_attention_heads (8)", "100"]),
    ({"hidden_size": 6, "num_attention_heads": 2}, ["hidden_size", "of 4", "6"]),
    ({"hidden_size": 0}, ["hidden_size must be at least 1", "0"]),
    ({"num_attention_heads": 0}, ["num_attention_heads must be at least 1", "0"]),
    ({"num_encoder_layers": 0}, ["num_encoder_layers must be at least 1", "0"]),
    ({"num_decoder_layers": 0}, ["num_decoder_layers must be at least 1", "0"]),
    ({"encoder_ffn_dim": -1}, ["encoder_ffn_dim must be at least 1", "-1"]),
    ({"decoder_ffn_dim": -1}, ["decoder_ffn_dim must not be negative", "-1", "0 leaves the block out"]),
    ({"max_words": 0}, ["max_words must be at least 1", "0"]),
    ({"vocab_size": 0}, ["vocab_size must be at least 1", "0"]),
    ({"word_vector_size": 0}, ["word_vector_size must be at least 1", "0"]),
    ({"mask_decoder_channels": 0}, ["mask_decoder_channels must be at least 1", "0"]),
    ({"num_mask_upsamplings": 4}, ["num_mask_upsamplings", "0 to 3", "not 4"]),
    ({"num_mask_upsamplings": -1}, ["num_mask_upsamplings", "0 to 3", "not -1"]),
    ({"dropout": 1.0}, ["dropout", "less than 1", "1.0"]),
    ({"dropout": -0.1}, ["dropout", "at least 0", "-0.1"]),
    ({"mask_loss_weight": -1}, ["mask_loss_weight must not be negative", "-1", "0 turns the term off"]),
    ({"reconstruction_loss_weight": -0.1}, ["reconstruction_loss_weight must not be negative", "-0.1", "0 turns"]),
    ({"dice_loss_weight": -2}, ["dice_loss_weight must not be negative", "-2", "0 turns"]),
    ({"mask_loss_weight": 0}, ["mask_loss_weight and dice_loss_weight are both 0", "Raise one"]),
    ({"num_decoder_layers": 1}, ["'iterative'", "num_decoder_layers is 1", "interaction='none'"]),
    ({"num_decoder_layers": 1, "interaction": "static"}, ["'static'", "num_decoder_layers is 1", "interaction='none'"]),
    ({"vocab_size": 7, "unk_token_id": 7}, ["unk_token_id", "0 to 6", "not 7"]),
    ({"unk_token_id": -1}, ["unk_token_id", "0 to 9999", "not -1"]),
    ({"text_config": TINY_BERT, "max_words": 33}, ["max_position_embeddings = 32", "max_words is 33", "32 or less"]),
]


@pytest.mark.parametrize(("settings", "words"), CONTRADICTIONS, ids=[str(settings) for settings, _ in CONTRADICTIONS])
def test_a_contradiction_is_answered_with_the_rule_the_value_and_the_remedy(settings, words):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        M3DecConfig(**settings)
    assert isinstance(error.value.__cause__, ValueError)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("recurrent_type", ["lstm", "gru"]),
        (
            "mutual_attention",
            ["shared", "independent", "language_attended_vision", "vision_attended_language"],
        ),
        ("interaction", ["iterative", "static", "none"]),
        ("reconstruction_target", ["joint", "detached"]),
        ("reconstruction_output", ["normalized", "linear"]),
        ("mask_decoder", ["dynamic_kernels", "concatenated", "decoder_only"]),
    ],
)
def test_a_choice_is_one_of_those_named_and_no_other(field, choices):
    for choice in choices:
        assert getattr(M3DecConfig(**{field: choice}), field) == choice
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        M3DecConfig(**{field: "sharde"})
    assert all(word in str(error.value) for word in [field, "sharde", *choices])


@pytest.mark.parametrize(
    "settings", [{"image_size": "416"}, {"hidden_size": 256.0}, {"freeze_backbone": 1}, {"dropout": "0.1"}]
)
def test_a_value_of_another_type_is_refused_by_the_fields_name(settings):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(settings))):
        M3DecConfig(**settings)


@pytest.mark.parametrize("field", ["mask_loss_weight", "reconstruction_loss_weight", "dropout"])
def test_a_whole_number_will_do_for_a_real_one(field):
    value = 0 if field == "dropout" else 1
    assert getattr(M3DecConfig(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("max_word", "max_words"),
        ("num_decoder_layer", "num_decoder_layers"),
        ("mutual_atention", "mutual_attention"),
        ("reconstruction_weight_loss", "reconstruction_loss_weight"),
        ("imagesize", "image_size"),
        ("backbone_confg", "backbone_config"),
        ("freeze_backbones", "freeze_backbone"),
    ],
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(misspelt, meant):
    with pytest.raises(TypeError, match=f"no field '{misspelt}'. Did you mean '{meant}'"):
        M3DecConfig(**{misspelt: 3})


def test_the_hubs_own_entries_are_no_misspellings():
    config = M3DecConfig(auto_map={"AutoConfig": "a.B"}, custom_pipelines={"task": {}}, architectures=["X"])
    assert config.architectures == ["X"]
    assert not config.to_dict().keys() & {"auto_map", "custom_pipelines"}  # it has its own code


def test_layers_have_the_librarys_name_too():
    assert M3DecConfig(num_decoder_layers=4).num_hidden_layers == 4
    assert M3DecConfig(num_hidden_layers=2).num_decoder_layers == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backbone_config": TINY_TIMM, "backbone_leaky_relu_slope": 0.1, "freeze_backbone": True},
        {"backbone_config": TINY_SWIN, "text_config": TINY_BERT, "max_words": 20, "image_size": 480},
        {"backbone_config": SwinConfig(**TINY_SWIN), "text_config": BertConfig(**TINY_BERT)},
        {"mutual_attention": "independent", "interaction": "static", "recurrent_type": "gru", "dropout": 0},
    ],
    ids=["defaults", "timm", "swin and bert as dicts", "swin and bert as configs", "a variant"],
)
def test_a_config_comes_back_from_its_file_as_it_was(settings, tmp_path):
    config = M3DecConfig(**settings)
    config.save_pretrained(tmp_path)
    for loaded in (M3DecConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is M3DecConfig
        assert type(loaded.backbone_config) is type(config.backbone_config)
        assert type(loaded.text_config) is type(config.text_config)
        # _name_or_path differs, for it says where a config was loaded from
        saved, read = config.to_dict(), loaded.to_dict()
        assert {key for key in saved if saved[key] != read.get(key)} - {
            "_name_or_path",
            "transformers_version",
        } == set()
        assert list(loaded.backbone_config.out_indices) == list(config.backbone_config.out_indices)


def test_a_contradiction_in_a_file_is_answered_too(tmp_path):
    config = M3DecConfig()
    config.image_size = 400  # what is changed later is not checked until it is read again
    config.to_json_file(tmp_path / "config.json")
    with pytest.raises(StrictDataclassClassValidationError, match="384 and 416"):
        M3DecConfig.from_pretrained(tmp_path)
