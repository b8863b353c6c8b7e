"""M3DecConfig: the settings of § IV-A, and the rows of Tables I to IV as values of its fields."""

import difflib
from dataclasses import fields
from typing import Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec, strict

# A backbone whose last three levels have strides 8, 16 and 32, the levels that the model fuses.
DARKNET53 = {"backbone": "darknet53", "out_indices": [3, 4, 5], "features_only": True}

AT_LEAST_ONE = (
    "hidden_size",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_attention_heads",
    "encoder_ffn_dim",
    "max_words",
    "vocab_size",
    "word_vector_size",
    "mask_decoder_channels",
)


@strict  # without this decorator, validate_architecture is never called
class M3DecConfig(PreTrainedConfig):
    """The shape of an M3Dec network and the weights of its losses. Defaults are § IV-A's, unless marked ours.

    Args:
        backbone_config: a `PreTrainedConfig` or dict of any transformers backbone that gives three levels, of strides
            8, 16 and 32: a `timm_backbone` (default: Darknet-53) or for example `swin` with
            `out_features=["stage2", "stage3", "stage4"]`.
        text_config: None for word vectors and a recurrent network; or the config of a BERT-like `AutoModel`.
        image_size: S, the side of the square that images are resized to, and the size M3Att's last layer is made for.
        feature_stride: pixels of the input per pixel of the fused feature map, 16 or 8.
        backbone_leaky_relu_slope: None keeps the backbone's own; weights in Darknet's format need 0.1.
        max_words: T, the largest number of words (of pieces, [CLS] and [SEP] counted, where text_config is given).
        unk_token_id: the row of the vocabulary that all unknown words share; it is trained, whatever
            freeze_word_vectors says.
        mutual_attention: "shared" | "independent" | "language_attended_vision" | "vision_attended_language" (Table I).
        interaction: "iterative" | "static" | "none" (Table II: IMI, IMI*, neither).
        reconstruction_target: "joint" lets gradients into F_proj, as the text has it; "detached" makes F_proj a fixed
            random projection of detached words, which cannot collapse to a constant.
        reconstruction_output: "normalized" has BN and ReLU after all of LFR's three linear layers, as § IV-A says;
            "linear" leaves the third one bare, as all models before this setting. There a joint target collapses.
        mask_decoder: "dynamic_kernels" | "concatenated" | "decoder_only" (Table III: ours, Concate, VLT).
        num_mask_upsamplings: how many of the three gaps between the mask decoder's convolutions double the map, counted
            from the last; the logits have side image_size / feature_stride * 2**num_mask_upsamplings.
        dice_loss_weight: ours; 0 in the paper.

    Raises:
        StrictDataclassClassValidationError: two settings contradict each other. The message names both and a remedy.
        StrictDataclassFieldValidationError: a value has the wrong type or is none of the choices.
        TypeError: a field's name is misspelt.
    """

    model_type = "m3dec"
    sub_configs_defaults = {  # noqa: RUF012
        "backbone_config": SubConfigSpec(AutoConfig, model_type="timm_backbone", init_kwargs=DARKNET53),
        "text_config": SubConfigSpec(AutoConfig, model_type="bert", optional=True),
    }
    keys_to_ignore_at_inference = [  # noqa: RUF012 - Trainer gathers what is left: the logits
        "mask_loss",
        "reconstruction_loss",
        "last_hidden_state",
        "image_features",
        "word_features",
        "sentence_features",
        "hidden_states",
        "attentions",
        "cross_attentions",
        "mutual_attentions",
    ]
    attribute_map = {"num_hidden_layers": "num_decoder_layers"}  # noqa: RUF012

    backbone_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None

    image_size: int = 416  # S; 480 with Swin
    feature_stride: int = 16  # ours, as the paper's ancestors
    hidden_size: int = 256  # C
    num_encoder_layers: int = 2  # N_enc
    num_decoder_layers: int = 3  # N_dec, the best row of Table I
    num_attention_heads: int = 8
    encoder_ffn_dim: int = 2048  # ours
    decoder_ffn_dim: int = 2048  # ours; 0: no feed-forward block
    dropout: float | int = 0.1  # ours
    backbone_leaky_relu_slope: float | int | None = None

    max_words: int = 15  # N_t; 20 for RefCOCOg and for BERT
    vocab_size: int = 10000  # ours: the number of rows of the word vectors at hand
    word_vector_size: int = 300  # GloVe
    unk_token_id: int = 1
    recurrent_type: Literal["lstm", "gru"] = "lstm"  # § III has LSTM, Table IV's own row GRU
    freeze_word_vectors: bool = True  # ours
    freeze_backbone: bool = False  # ours

    mutual_attention: Literal["shared", "independent", "language_attended_vision", "vision_attended_language"] = (
        "shared"
    )
    interaction: Literal["iterative", "static", "none"] = "iterative"
    reconstruction_target: Literal["joint", "detached"] = "joint"
    reconstruction_output: Literal["normalized", "linear"] = "normalized"
    mask_decoder: Literal["dynamic_kernels", "concatenated", "decoder_only"] = "dynamic_kernels"
    mask_decoder_channels: int = 512
    num_mask_upsamplings: int = 3  # ours

    mask_loss_weight: float | int = 1.0  # w_mask, Eq. 5
    reconstruction_loss_weight: float | int = 0.1  # w_rec, Eq. 5; 0: no LFR
    dice_loss_weight: float | int = 0.0  # ours

    def __post_init__(self, **kwargs):
        known = {field.name for field in fields(self)} | set(self.attribute_map)
        for name in kwargs:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if nearest and name not in known:
                raise TypeError(f"M3DecConfig has no field {name!r}. Did you mean {nearest[0]!r}?")
        if type(self).__module__.startswith("m3dec."):  # installed: its own code and pipeline, whatever came along
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> int:
        """The side of the feature map that M3Att's last layer is made for: 26 at 416 pixels."""
        return self.image_size // self.feature_stride

    @property
    def num_pixels(self) -> int:
        """P, the number of pixels of the feature map: 676 at 416 pixels."""
        return self.grid_size**2

    def validate_architecture(self):
        """Contradictions between settings, each with its remedy. Called by `@strict`."""
        if self.image_size % 32 or self.image_size <= 0:
            below = max(self.image_size // 32 * 32, 32)
            raise ValueError(
                f"image_size must be a positive multiple of 32, the stride of the backbone's last level, but it is "
                f"{self.image_size}. The nearest sizes that fit are {below} and {below + 32}."
            )
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but it is {getattr(self, name)}.")
        if self.decoder_ffn_dim < 0:
            raise ValueError(
                f"decoder_ffn_dim must not be negative, but it is {self.decoder_ffn_dim}. 0 leaves the block out."
            )
        if self.feature_stride not in (8, 16):
            raise ValueError(
                f"feature_stride must be 16, or 8 for a finer map of small objects, not {self.feature_stride}."
            )
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), for the heads "
                f"share it, and of 4, for the sines and cosines of two axes do. It is {self.hidden_size}."
            )
        if not 0 <= self.num_mask_upsamplings <= 3:
            raise ValueError(
                f"num_mask_upsamplings must be 0 to 3, since the mask decoder has three gaps between its four "
                f"convolutions, not {self.num_mask_upsamplings}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability: at least 0 and less than 1, not {self.dropout}.")
        for name in ("mask_loss_weight", "reconstruction_loss_weight", "dice_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but it is {getattr(self, name)}. 0 turns the term off.")
        if self.mask_loss_weight == 0 and self.dice_loss_weight == 0:
            raise ValueError(
                "mask_loss_weight and dice_loss_weight are both 0, so no mask would be learnt. Raise one of them."
            )
        if self.interaction != "none" and self.num_decoder_layers == 1:
            raise ValueError(
                f"interaction={self.interaction!r} stands between two successive decoder layers, but "
                "num_decoder_layers is 1. Set interaction='none', or use at least two layers."
            )
        positions = getattr(self.text_config, "max_position_embeddings", None)
        if positions is not None and self.max_words > positions:
            raise ValueError(
                f"text_config has positions for max_position_embeddings = {positions} pieces, but max_words is "
                f"{self.max_words}. Set max_words to {positions} or less."
            )
        if self.text_config is None and not 0 <= self.unk_token_id < self.vocab_size:
            raise ValueError(
                f"unk_token_id must be a row of the vocabulary, 0 to {self.vocab_size - 1}, not {self.unk_token_id}."
            )
