"""M3Dec, the spine: § III, Fig. 2, Eq. 5. A picture and a sentence go in, the mask of the thing meant comes out.

Where the paper's pieces are:
    vision_encoder.py           § III, Fig. 2        F_vis, and the layers that make F_enc of it
    language_encoder.py         § III, Fig. 2        F_t, F_t'
    mutual_attention.py         § III-A, Fig. 3(b)   Eq. 1, Eq. 2a, Eq. 2b, F_mul
    decoder_layer.py            § III-A, Fig. 3(c)
    iterative_interaction.py    § III-B, Fig. 4      Eq. 3
    language_reconstruction.py  § III-C, Fig. 5      Eq. 4
    mask_decoder.py             § III-D, Fig. 6
    this file                   § III-D              Eq. 5

Shapes: B images, N expressions, T words (the paper's N_t), P pixels of the feature map (HW), C channels, S side of the
input image.
"""

import os
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import load_state_dict
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from m3dec.configuration.configuration_m3dec import M3DecConfig

from .decoder_layer import DecoderLayer
from .iterative_interaction import INITIAL_WEIGHT, IterativeInteraction, StaticInteraction
from .language_encoder import BertLanguageEncoder, RecurrentLanguageEncoder
from .language_reconstruction import LanguageReconstruction
from .mask_decoder import MaskDecoder
from .vision_encoder import TransformerEncoderLayer, VisionEncoder

logger = logging.get_logger(__name__)

INITIAL_MASK_BIAS = -2.0  # ours: masks are small, so the first answer is "mostly not it"
INITIAL_WORD_SPREAD = 0.4  # ours: about the spread of GloVe's entries, for word vectors that nobody loads
ALIGNMENT = 64  # bytes; of the memory that torch allocates on a CPU


@dataclass
class M3DecModelOutput(ModelOutput):
    """What `M3DecModel` gives.

    Attributes:
        last_hidden_state: F_dec, (N, T, C). Rows of padded words mean nothing.
        image_features: F_enc, (B, P, C): a function of the images alone, to be given back as `image_features=`.
        word_features: F_t, (N, T, C).
        sentence_features: F_t', (N, 1, C).
        hidden_states: F_dec of each decoder layer, (N, T, C) each; on request.
        attentions: self-attention weights of each decoder layer, (N, heads, T, T); on request.
        cross_attentions: cross-attention weights of each decoder layer, (N, heads, T, T), or (N, heads, T, P) where the
            mutual attention is VAL only; on request.
        mutual_attentions: A_mut of each decoder layer before any softmax, (N, T, P); on request.
    """

    last_hidden_state: Tensor | None = None
    image_features: Tensor | None = None
    word_features: Tensor | None = None
    sentence_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    mutual_attentions: tuple[Tensor, ...] | None = None


@dataclass
class M3DecImageSegmentationOutput(ModelOutput):
    """What `M3DecForImageSegmentation` gives: a loss, logits, and all that `M3DecModelOutput` has.

    Attributes:
        loss: Eq. 5, a scalar; with `labels`.
        mask_loss: the binary cross entropy alone, a mean over pixels and expressions; with `labels`.
        reconstruction_loss: the LFR term alone, unweighted; with `labels`, in training.
        logits: (N, h, w), side S / feature_stride * 2**num_mask_upsamplings; positive on the object.
    """

    loss: Tensor | None = None
    mask_loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    image_features: Tensor | None = None
    word_features: Tensor | None = None
    sentence_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    mutual_attentions: tuple[Tensor, ...] | None = None


class M3DecPreTrainedModel(PreTrainedModel):
    config: M3DecConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    # Encoder layers only: a decoder layer has batch norms, whose statistics a second forward would move again.
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerEncoderLayer", "DecoderLayer", "MaskDecoder"]  # noqa: RUF012
    _supports_sdpa = True
    fused = False  # by fuse_for_inference

    def save_pretrained(self, *args, **kwargs) -> None:
        """Like `PreTrainedModel.save_pretrained`, but a fused model refuses: its config describes another network."""
        if self.fused:
            raise ValueError("A fused model cannot be saved: its batch norms are gone. Save it before fusing.")
        super().save_pretrained(*args, **kwargs)

    def train(self, mode: bool = True):
        """Like `nn.Module.train`, but a fused model refuses to leave eval."""
        if mode and self.fused:
            raise ValueError("A fused model cannot be trained: its batch norms are gone. Load the model again.")
        return super().train(mode)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Like `PreTrainedModel.from_pretrained`, with two things put right. It makes all that it loads trainable: what
        the config freezes is frozen again. And it maps weights from the file at odd addresses, where matrix products
        round differently: moved to aligned ones, a loaded model answers as the saved one did, to the bit."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        with_frozen_parts = VisionEncoder | RecurrentLanguageEncoder | BertLanguageEncoder | LanguageReconstruction
        for module in model.modules():
            if isinstance(module, with_frozen_parts):
                module.freeze_parameters()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As the base class, whose small normal weights let the residual streams speak first.

        With Xavier's, attention drowned them in a small model on drawn scenes: pixels of one image differed by 2 of a
        norm of 11. It was blind to the words after 600 steps; with these it was not after 200. The learning rate and
        the Dice weight differed between those runs too, so how much of that is due to this was not isolated.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.LSTM | nn.GRU):
            for name, parameter in module.named_parameters():
                (init.zeros_ if "bias" in name else init.xavier_uniform_)(parameter)
        elif isinstance(module, RecurrentLanguageEncoder):
            init.normal_(module.word_vectors.weight, std=INITIAL_WORD_SPREAD)
            init.normal_(module.unknown_word, std=INITIAL_WORD_SPREAD)
        elif isinstance(module, IterativeInteraction | StaticInteraction):
            init.constant_(module.interaction_weight, INITIAL_WEIGHT)
        elif isinstance(module, MaskDecoder):
            init.normal_(module.last_convolution.weight, std=0.01)  # loud first logits would have to be unlearnt
            init.constant_(module.last_convolution.bias, INITIAL_MASK_BIAS)


class M3DecModel(M3DecPreTrainedModel):
    """M3Dec without its mask decoder: words that have seen the picture."""

    def __init__(self, config: M3DecConfig):
        super().__init__(config)
        self.vision_encoder = VisionEncoder(
            config.backbone_config,
            config.hidden_size,
            config.feature_stride,
            config.freeze_backbone,
            config.backbone_leaky_relu_slope,
        )
        self.encoder_layers = nn.ModuleList(
            TransformerEncoderLayer(
                config.hidden_size, config.num_attention_heads, config.encoder_ffn_dim, config.dropout
            )
            for _ in range(config.num_encoder_layers)
        )
        if config.text_config is not None:
            unreached = not config.reconstruction_loss_weight or config.reconstruction_target == "detached"
            self.language_encoder = BertLanguageEncoder(config.text_config, config.hidden_size, unreached)
        else:
            self.language_encoder = RecurrentLanguageEncoder(
                config.vocab_size,
                config.word_vector_size,
                config.hidden_size,
                config.unk_token_id,
                config.recurrent_type,
                config.freeze_word_vectors,
            )
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(
                config.hidden_size,
                config.num_pixels,
                config.num_attention_heads,
                config.decoder_ffn_dim,
                config.dropout,
                config.mutual_attention,
            )
            for _ in range(config.num_decoder_layers)
        )
        interaction = {"iterative": IterativeInteraction, "static": StaticInteraction, "none": None}[config.interaction]
        gaps = config.num_decoder_layers - 1 if interaction else 0
        self.interactions = nn.ModuleList(interaction(config.hidden_size) for _ in range(gaps))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        encoder = self.language_encoder
        return encoder.word_vectors if self.config.text_config is None else encoder.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        encoder = self.language_encoder
        if self.config.text_config is None:
            encoder.word_vectors = value
        else:
            encoder.text_encoder.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """The image half: from normalized `pixel_values` (B, 3, S, S) to F_enc (B, P, C), whatever will be asked.

        Raises:
            ValueError: the images are not square, or S is no multiple of 32.
        """
        eager = self.config._attn_implementation == "eager"
        pixels = self.vision_encoder(pixel_values)  # (B, P, C)  F_vis
        for layer in self.encoder_layers:
            pixels = layer(pixels, eager)
        return pixels  # (B, P, C)  F_enc

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        image_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> M3DecModelOutput:
        """Fig. 2 up to the mask decoder, left to right.

        Args:
            pixel_values: (B, 3, S, S) float, normalized. Not needed with `image_features`.
            input_ids: (N, T) int64, T at most `config.max_words`, padded on the right.
            attention_mask: (N, T), 1 on words and 0 on padding; None: no padding.
            image_index: (N,) int64, the image each expression is about; None where N == B or B == 1.
            image_features: (B, P, C), from `get_image_features` or an earlier output, instead of `pixel_values`.
            output_attentions: also give all attention weights and A_mut. Runs the plain matrix products.
            output_hidden_states: also give F_dec of each layer.

        Raises:
            ValueError: an input is missing or does not fit the others; the message says which and how.
        """
        if image_features is None and pixel_values is None:
            raise ValueError(
                "The image is half of the input, but pixel_values and image_features are None. Give pixel_values, or "
                "image_features from get_image_features."
            )
        if image_features is not None and pixel_values is not None:
            raise ValueError("pixel_values and image_features were both given; they say the same. Leave one out.")
        channels = self.config.hidden_size
        if image_features is not None and (image_features.ndim != 3 or image_features.shape[-1] != channels):
            raise ValueError(
                f"image_features must be (B, P, {channels}), but they are {tuple(image_features.shape)}. Give what "
                "get_image_features returned."
            )
        eager = self.config._attn_implementation == "eager"
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        word_mask = self._word_mask(input_ids, attention_mask)  # (N, T), False on padding
        if image_features is None:
            image_features = self.get_image_features(pixel_values)  # (B, P, C)  F_enc
        pixels = _images_of_expressions(image_features, image_index, input_ids.shape[0])  # (N, P, C)
        words, sentence = self.language_encoder(input_ids, word_mask)  # (N, T, C), (N, 1, C)  F_t, F_t'

        query, language = words, words
        states, attended = [], []
        for number, layer in enumerate(self.decoder_layers):
            if number > 0 and len(self.interactions):
                query, language = self.interactions[number - 1](query, language, word_mask)  # Eq. 3
            query, weights = layer(query, pixels, word_mask, eager or output_attentions)  # (N, T, C)  F_dec^n
            states.append(query)
            attended.append(weights)

        attentions, mutual_attentions, cross_attentions = zip(*attended, strict=True)
        return M3DecModelOutput(
            last_hidden_state=query,
            image_features=image_features,
            word_features=words,
            sentence_features=sentence,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
            cross_attentions=cross_attentions if output_attentions else None,
            mutual_attentions=mutual_attentions if output_attentions else None,
        )

    def _word_mask(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """(N, T) bool, True on words. Refuses what the model would answer with nonsense."""
        if input_ids is None:
            raise ValueError("The expression is half of the input, but input_ids is None. M3DecProcessor makes it.")
        if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
            raise ValueError(
                f"input_ids must be (N, T) whole numbers, at least one expression of one word, but they are "
                f"{tuple(input_ids.shape)} of {input_ids.dtype}. M3DecProcessor makes them."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, but it has "
                f"{tuple(attention_mask.shape)}. Give both as one call of the tokenizer made them."
            )
        if input_ids.shape[1] > self.config.max_words:
            raise ValueError(
                f"This model reads at most max_words = {self.config.max_words} words, but input_ids has "
                f"{input_ids.shape[1]}. Truncate the expressions, as M3DecProcessor does."
            )
        word_mask = attention_mask.bool()
        if not torch.compiler.is_compiling():
            rows = self.get_input_embeddings().num_embeddings
            if input_ids.min() < 0 or input_ids.max() >= rows:
                raise ValueError(
                    f"input_ids must be 0 to {rows - 1}, the rows of this model's vocabulary, but they reach from "
                    f"{input_ids.min().item()} to {input_ids.max().item()}. Use the processor saved with this model."
                )
            if not word_mask.any(dim=1).all():
                empty = (~word_mask.any(dim=1)).nonzero().flatten().tolist()
                raise ValueError(
                    f"Each expression needs at least one word, but attention_mask is all 0 in the rows {empty}. Leave "
                    "those expressions out."
                )
            if (word_mask[:, 1:] & ~word_mask[:, :-1]).any():
                raise ValueError(
                    "Expressions must be padded on the right, but attention_mask has a 1 after a 0. Set the "
                    "tokenizer's padding_side to 'right'."
                )
        return word_mask


class M3DecForImageSegmentation(M3DecPreTrainedModel):
    """M3Dec with its mask decoder and its loss: an image and an expression to a mask."""

    def __init__(self, config: M3DecConfig):
        super().__init__(config)
        self.model = M3DecModel(config)
        self.mask_decoder = MaskDecoder(
            config.hidden_size,
            config.num_pixels,
            config.num_attention_heads,
            config.max_words,
            config.mask_decoder_channels,
            config.num_mask_upsamplings,
            config.mask_decoder,
        )
        self.language_reconstruction = None
        if config.reconstruction_loss_weight:
            detached = config.reconstruction_target == "detached"
            self.language_reconstruction = LanguageReconstruction(config.hidden_size, detached)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """The image half alone, see `M3DecModel.get_image_features`: encode once, ask many times."""
        return self.model.get_image_features(pixel_values)

    def set_image_size(self, image_size: int) -> None:
        """Make `image_size` the one this model is made for, to train it further there: what belongs to one grid is
        resampled once, as `forward` does each time, and answers at that size stay what they were.

        Raises:
            ValueError: `image_size` is no positive multiple of 32.
        """
        before, self.config.image_size = self.config.image_size, image_size
        try:
            self.config.validate_architecture()
        except ValueError:
            self.config.image_size = before
            raise
        for layer in self.model.decoder_layers:
            layer.mutual_attention.set_num_pixels(self.config.num_pixels)
        self.mask_decoder.set_num_pixels(self.config.num_pixels)

    @torch.no_grad()
    def fuse_for_inference(self) -> "M3DecForImageSegmentation":
        """Fold batch norms and upsampling into the convolutions, in place, and lay these out as a CPU likes them.

        Logits change by rounding alone. What is left only infers: it cannot be trained or saved, for its batch norms
        are gone. A second call does nothing. `examples/benchmarks/benchmark_inference.py` says what it is worth.

        Returns:
            the model itself.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("Only a model in eval mode can be fused, but this one is in training. Call eval() first.")
        if not self.fused:
            self.model.vision_encoder.fuse(self.config.image_size)
            self.mask_decoder.fuse()
            self.to(memory_format=torch.channels_last)
            self.fused = self.model.fused = True
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        labels: Tensor | None = None,
        image_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> M3DecImageSegmentationOutput:
        """Fig. 2, left to right, and Eq. 5 if `labels` are given. For the other inputs see `M3DecModel.forward`.

        Args:
            labels: (N, H, W), 1 on the object and 0 elsewhere, in the frame of `pixel_values`, or at the original size
                where that was stretched. They are area-resized to the logits' size and count as object from a half on.

        Raises:
            ValueError: an input is missing or does not fit the others; the message says which and how.
        """
        outputs = self.model(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_index=image_index,
            image_features=image_features,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        word_mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        decoded = outputs.last_hidden_state
        pixels = _images_of_expressions(outputs.image_features, image_index, input_ids.shape[0])
        eager = self.config._attn_implementation == "eager"
        logits = self.mask_decoder(decoded, pixels, word_mask, eager)  # (N, h, w)

        loss = mask_loss = reconstruction_loss = None
        if labels is not None:
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            target = masks_at(labels, precise)
            mask_loss = F.binary_cross_entropy_with_logits(precise, target)  # L_mask, a mean over pixels
            loss = self.config.mask_loss_weight * mask_loss
            if self.config.dice_loss_weight:
                loss = loss + self.config.dice_loss_weight * dice_loss(precise, target)
            if self.training and self.language_reconstruction is not None:
                reconstruction_loss = self.language_reconstruction(
                    outputs.word_features, outputs.sentence_features, decoded, word_mask
                )  # L_rec
                loss = loss + self.config.reconstruction_loss_weight * reconstruction_loss  # Eq. 5
        return M3DecImageSegmentationOutput(
            loss=loss, mask_loss=mask_loss, reconstruction_loss=reconstruction_loss, logits=logits, **outputs
        )

    @classmethod
    def from_pretrained_parts(
        cls,
        config: M3DecConfig,
        backbone: str | dict[str, Tensor] | None = None,
        word_vectors: Tensor | None = None,
        text_encoder: str | dict[str, Tensor] | None = None,
    ) -> "M3DecForImageSegmentation":
        """A new model whose parts start from weights that others trained; what is not given starts at random.

        Args:
            config: of the whole. Its backbone_config and text_config must describe the parts.
            backbone: a folder or hub name of weights for the configured backbone (for timm backbones timm's name), or
                a state dict, which may hold more, such as a classifier's head.
            word_vectors: (V, D) float, one row per token id of the tokenizer. The vector that unknown words share
                starts at their mean.
            text_encoder: a folder or hub name, or a state dict, for the configured text encoder.

        Raises:
            ValueError: a part does not fit the config; the message says where.
        """
        model = cls(config)
        if backbone is not None:
            _load_part(model.model.vision_encoder.backbone, backbone, "backbone")
        language = model.model.language_encoder
        if word_vectors is not None:
            if config.text_config is not None:
                raise ValueError("word_vectors belong to the recurrent text side, but text_config is set. Give one.")
            if tuple(word_vectors.shape) != tuple(language.word_vectors.weight.shape):
                raise ValueError(
                    "word_vectors must be (vocab_size, word_vector_size) = "
                    f"{tuple(language.word_vectors.weight.shape)}, but they are "
                    f"{tuple(word_vectors.shape)}. Set these two fields of the config from their shape."
                )
            known = word_vectors[word_vectors.any(dim=1)]
            if len(known) == 0 or not torch.isfinite(known).all():
                raise ValueError(
                    f"word_vectors must be finite and not all 0, but {len(known)} of {len(word_vectors)} rows hold "
                    f"anything but 0 and {(~torch.isfinite(known)).sum().item()} numbers are not finite. Read them "
                    "again."
                )
            with torch.no_grad():
                language.word_vectors.weight.copy_(word_vectors)
                language.unknown_word.copy_(known.mean(dim=0))
        if text_encoder is not None:
            if config.text_config is None:
                raise ValueError(
                    "text_encoder was given, but config.text_config is None. Set it to the encoder's config."
                )
            _load_part(language.text_encoder, text_encoder, "text_encoder")
        return model


def masks_at(labels: Tensor, logits: Tensor) -> Tensor:
    """`labels` (N, H, W) at the size of `logits` (N, h, w), in their dtype: 1 where at least half a cell is object."""
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"labels must be (N, H, W) with one mask for each of the {len(logits)} expressions, but they are "
            f"{tuple(labels.shape)}. Give an image's masks once for each of its expressions."
        )
    if not torch.compiler.is_compiling() and labels.max() > 1:
        raise ValueError(
            f"labels are 1 on the object and 0 elsewhere, but the largest is {labels.max()}. Divide them by it."
        )
    covered = F.interpolate(labels[:, None].float(), size=logits.shape[-2:], mode="area").squeeze(1)
    return (covered >= 0.5).to(logits.dtype)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of each expression, averaged. Ours; off in the paper's recipes.

    The target covers few pixels, so BCE's gradient is small at first: in a trial 0.1 of this beside it raised the mIoU
    after 200 steps from .05 to .33. Where nothing is meant, Dice is 1 whatever large area is marked, and has no
    gradient; there it is the BCE of what is marked, each pixel weighing as much as its probability.
    """
    probability = logits.sigmoid()
    marked, area = probability.sum(dim=(1, 2)), target.sum(dim=(1, 2))
    dice = 1 - (2 * (probability * target).sum(dim=(1, 2)) + 1) / (marked + area + 1)
    weight = probability.detach()
    nothing = (weight * F.softplus(logits)).sum(dim=(1, 2)) / (weight.sum(dim=(1, 2)) + 1)
    return torch.where(area > 0, dice, nothing).mean()


def _images_of_expressions(image_features: Tensor, image_index: Tensor | None, num_expressions: int) -> Tensor:
    """F_enc (B, P, C) to (N, P, C): for each expression, the image it is about."""
    num_images = image_features.shape[0]  # not len(), which torch.export takes for a constant
    if image_index is None:
        if num_images not in (1, num_expressions):
            raise ValueError(
                f"Got {num_images} images and {num_expressions} expressions. Give image_index, (N,) int64: the image "
                "each expression is about."
            )
        return image_features.expand(num_expressions, -1, -1)
    if image_index.shape != (num_expressions,) or image_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"image_index must hold one whole number for each of the {num_expressions} expressions, but it is "
            f"{tuple(image_index.shape)} of {image_index.dtype}. Give the row of pixel_values that each is about."
        )
    if not torch.compiler.is_compiling() and (image_index.min() < 0 or image_index.max() >= num_images):
        raise ValueError(
            f"image_index must be 0 to {num_images - 1}, for there are {num_images} images, but it reaches from "
            f"{image_index.min().item()} to {image_index.max().item()}. Give the image's row in pixel_values."
        )
    return image_features[image_index]


def _load_part(part: PreTrainedModel, source: str | os.PathLike | dict[str, Tensor], name: str) -> None:
    """Copy weights from a folder, hub name or state dict into `part`: all of it, or a ValueError."""
    if not isinstance(source, dict):
        if part.config.model_type == "timm_backbone":
            # TimmBackbone.from_pretrained knows timm's names only, not a folder it was saved to.
            if os.path.isdir(source):
                source = load_state_dict(os.path.join(source, "model.safetensors"))
            else:
                with init.no_init_weights():  # it would reset the batch norms' statistics, of pretrained weights too
                    source = type(part).from_pretrained(source, config=part.config).state_dict()
        else:
            loader = AutoModel if name == "text_encoder" else type(part)
            loaded, report = loader.from_pretrained(
                source, config=part.config, output_loading_info=True, ignore_mismatched_sizes=True
            )
            # What a folder lacks, from_pretrained makes up at random: only what was really there counts.
            source = {key: tensor for key, tensor in loaded.state_dict().items() if key not in report["missing_keys"]}
            source |= {key: torch.empty(shape, device="meta") for key, shape, _ in report["mismatched_keys"]}

    def plain(key: str) -> str:  # timm writes stages.0.x in a classifier and stages_0.x in its features
        return key.removeprefix("_backbone.").replace(".", "_")

    given = {plain(key): tensor for key, tensor in source.items()}
    wanted = part.state_dict()
    # Counters change nothing, and the norms that a transformers backbone puts after its levels start as new.
    optional = re.compile(r"num_batches_tracked$|^hidden_states_norms\.")
    missing = [key for key in wanted if plain(key) not in given and not optional.search(key)]
    if missing:
        raise ValueError(
            f"The weights for the {name} lack {len(missing)} of its {len(wanted)} tensors, the first {missing[:3]}. "
            "Are they of the architecture that the config names?"
        )
    found = {key: given[plain(key)] for key in wanted if plain(key) in given}
    wrong = [key for key, tensor in found.items() if tensor.shape != wanted[key].shape]
    if wrong:
        raise ValueError(
            f"The weights for the {name} have another shape in {len(wrong)} tensors, the first {wrong[0]}: "
            f"{tuple(found[wrong[0]].shape)} where the config makes {tuple(wanted[wrong[0]].shape)}."
        )
    part.load_state_dict(found, strict=False)
    surplus = len(given) - len(found)
    logger.info("%s: %d tensors loaded, %d of the source not needed.", name, len(found), surplus)
