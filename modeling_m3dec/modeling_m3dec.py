"""M3Dec, the spine: § III, Fig. 2, Eq. 5. An image and an expression go in, the mask of the object meant comes out.

Where the paper's pieces are:
    vision_encoder.py           § III, Fig. 2        F_vis, and the layers that make F_enc of it
    language_encoder.py         § III, Fig. 2        F_t, F_t'
    mutual_attention.py         § III-A, Fig. 3(b)   Eq. 1, Eq. 2a, Eq. 2b, F_mul
    decoder_layer.py            § III-A, Fig. 3(c)
    iterative_interaction.py    § III-B, Fig. 4      Eq. 3
    language_reconstruction.py  § III-C, Fig. 5      Eq. 4
    mask_decoder.py             § III-D, Fig. 6
    mask_loss.py                § III-D              L_mask of Eq. 5
    this file                   § III-D              Eq. 5
Around them: input_checks.py refuses wrong inputs, outputs.py names what comes out, pretrained_weights.py loads parts,
fusing.py folds for inference.

Shapes: B images, N expressions, T words (the paper's N_t), P pixels of the feature map (HW), C channels, S side of the
input image.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from m3dec.configuration.configuration_m3dec import M3DecConfig

from .decoder_layer import DecoderLayer
from .fusing import fuse_mask_decoder, fuse_vision_encoder
from .input_checks import check_inputs, check_labels, check_pixel_values, check_values, check_words, real_words
from .iterative_interaction import INITIAL_WEIGHT, IterativeInteraction, StaticInteraction
from .language_encoder import BertLanguageEncoder, RecurrentLanguageEncoder
from .language_reconstruction import LanguageReconstruction
from .mask_decoder import MaskDecoder
from .mask_loss import dice_loss, mask_loss, masks_at
from .outputs import M3DecImageSegmentationOutput, M3DecModelOutput, chosen
from .pretrained_weights import finish_loading, load_parts
from .vision_encoder import TransformerEncoderLayer, VisionEncoder

INITIAL_MASK_BIAS = -2.0  # ours: masks are small, so the first answer is "mostly not it"
INITIAL_WORD_SPREAD = 0.4  # ours: about the spread of GloVe's entries, for word vectors that nobody loads


class M3DecPreTrainedModel(PreTrainedModel):
    config: M3DecConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    # Encoder layers only: a decoder layer has batch norms, whose statistics a second forward would move again.
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerEncoderLayer", "DecoderLayer", "MaskDecoder"]  # noqa: RUF012
    _supports_sdpa = True
    _keep_in_fp32_modules = [r"\w*norm\.norm"]  # noqa: RUF012  `WordBatchNorm` says why
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
    def from_pretrained(cls, *args, image_size: int | None = None, **kwargs):
        """Like `PreTrainedModel.from_pretrained`; what the config freezes is frozen, and `set_image_size` called."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        finish_loading(model)
        if image_size is not None:
            model.set_image_size(image_size)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """As the base class: small normal weights. With Xavier's, a small model was blind to words after 600 steps."""
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
    """M3Dec without its mask decoder: words that have seen the image."""

    def __init__(self, config: M3DecConfig):
        super().__init__(config)
        size, heads, dropout = config.hidden_size, config.num_attention_heads, config.dropout
        self.vision_encoder = VisionEncoder(
            config.backbone_config,
            size,
            config.feature_stride,
            config.freeze_backbone,
            config.backbone_leaky_relu_slope,
        )
        self.encoder_layers = nn.ModuleList(
            TransformerEncoderLayer(size, heads, config.encoder_ffn_dim, dropout)
            for _ in range(config.num_encoder_layers)
        )
        if config.text_config is not None:
            freeze_sentence = not config.reconstruction_loss_weight or config.reconstruction_target == "detached"
            self.language_encoder = BertLanguageEncoder(config.text_config, size, freeze_sentence)
        else:
            self.language_encoder = RecurrentLanguageEncoder(
                config.vocab_size,
                config.word_vector_size,
                size,
                config.unk_token_id,
                config.recurrent_type,
                config.freeze_word_vectors,
            )
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(size, config.num_pixels, heads, config.decoder_ffn_dim, dropout, config.mutual_attention)
            for _ in range(config.num_decoder_layers)
        )
        interaction = {"iterative": IterativeInteraction, "static": StaticInteraction, "none": None}[config.interaction]
        gaps = config.num_decoder_layers - 1 if interaction else 0
        self.interactions = nn.ModuleList(interaction(size) for _ in range(gaps))
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

    def set_image_size(self, image_size: int) -> None:
        """Make `image_size` the size this model is made for, to train it further there. Its answers stay the same.

        Raises:
            ValueError: `image_size` is no positive multiple of 32.
        """
        before, self.config.image_size = self.config.image_size, image_size
        try:
            self.config.validate_architecture()
        except ValueError:
            self.config.image_size = before
            raise
        for layer in self.decoder_layers:
            layer.mutual_attention.set_num_pixels(self.config.num_pixels)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """The image half, whatever will be asked: normalized `pixel_values` (B, 3, S, S) to F_enc.

        Returns:
            last_hidden_state: F_enc (B, P, C), to be given as `image_features=`. hidden_states: F_vis, then the output
            of each encoder layer, (B, P, C) each. attentions: of each encoder layer, (B, heads, P, P).

        Raises:
            ValueError: the images are not square, or S is no multiple of 32.
        """
        check_pixel_values(pixel_values)
        output_attentions, output_hidden_states = self._asked(output_attentions, output_hidden_states)
        eager = self.config._attn_implementation == "eager" or output_attentions
        states, attentions = [self.vision_encoder(pixel_values)], []  # (B, P, C)  F_vis
        for layer in self.encoder_layers:
            pixels, weights = layer(states[-1], eager)
            states.append(pixels)
            attentions.append(weights)
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1],  # (B, P, C)  F_enc
            hidden_states=chosen(states, output_hidden_states),
            attentions=tuple(attentions) if output_attentions else None,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """The words alone, before they see an image: `input_ids` (N, T) to F_t and F_t'.

        Returns:
            last_hidden_state: F_t (N, T, C). pooler_output: F_t' (N, C). hidden_states and attentions: the text
            encoder's own; a recurrent one gives its word vectors and F_t, and has no attentions. A BERT has them with
            `attn_implementation="eager"`.

        Raises:
            ValueError: as `forward` for the same words.
        """
        word_mask = check_words(input_ids, attention_mask, self.config.max_words)
        check_values(None, input_ids, word_mask, None, 0, len(self.get_input_embeddings().weight))
        asked = self._asked(output_attentions, output_hidden_states)
        words, sentence, states, attentions = self.language_encoder(input_ids, word_mask, *asked)
        return BaseModelOutputWithPooling(
            last_hidden_state=words, pooler_output=sentence[:, 0], hidden_states=states, attentions=attentions
        )

    def _asked(self, output_attentions: bool | None, output_hidden_states: bool | None) -> tuple[bool, bool]:
        """Both as given, or as the config has them where None is given."""
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return attentions, states

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
        output_pixels: bool = False,
    ) -> M3DecModelOutput:
        """Fig. 2 up to the mask decoder, left to right.

        Args:
            pixel_values: (B, 3, S, S) float, normalized. Not needed with `image_features`.
            input_ids: (N, T) int64, T at most `config.max_words`, padded on the right.
            attention_mask: (N, T), 1 on words and 0 on padding; None: no padding.
            image_index: (N,) int64, the image each expression is about; None where N == B or B == 1.
            image_features: what `get_image_features` returned, or F_enc (B, P, C) alone, instead of `pixel_values`.
            output_attentions: also give all attention weights and A_mut. Runs the plain matrix products.
            output_hidden_states: also give F_t and F_dec of each layer; a list of numbers gives these alone.
            output_pixels: also give F_enc of the image that each expression is about.

        Raises:
            ValueError: an input is missing or does not fit the others; the message says which and how.
        """
        config = self.config
        if isinstance(image_features, BaseModelOutputWithPooling):
            image_features = image_features.last_hidden_state
        sizes = config.hidden_size, config.max_words, len(self.get_input_embeddings().weight)
        check_inputs(pixel_values, image_features, input_ids, attention_mask, image_index, *sizes)
        eager = config._attn_implementation == "eager"
        output_attentions, output_hidden_states = self._asked(output_attentions, output_hidden_states)

        word_mask = real_words(input_ids, attention_mask)  # (N, T), False on padding
        if image_features is None:
            image_features = self.get_image_features(
                pixel_values, return_dict=True
            ).last_hidden_state  # (B, P, C)  F_enc
        if image_index is None:
            pixels = image_features.expand(input_ids.shape[0], -1, -1)  # (N, P, C); len() would be fixed by an export
        else:
            pixels = image_features[image_index]
        words, sentence, *_ = self.language_encoder(input_ids, word_mask)  # (N, T, C), (N, 1, C)  F_t, F_t'

        query, language = words, words
        states, attended = [words], []
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
            hidden_states=chosen(states, output_hidden_states),
            attentions=attentions if output_attentions else None,
            cross_attentions=cross_attentions if output_attentions else None,
            mutual_attentions=mutual_attentions if output_attentions else None,
            pixels=pixels if output_pixels else None,
        )


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
            settings = config.reconstruction_target == "detached", config.reconstruction_output == "normalized"
            self.language_reconstruction = LanguageReconstruction(config.hidden_size, *settings)
        self.post_init()

    def get_image_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """The image half alone, see `M3DecModel.get_image_features`: encode once, ask many times."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """The words alone, see `M3DecModel.get_text_features`."""
        return self.model.get_text_features(*args, **kwargs)

    def set_image_size(self, image_size: int) -> None:
        """See `M3DecModel.set_image_size`."""
        self.model.set_image_size(image_size)
        self.mask_decoder.set_num_pixels(self.config.num_pixels)

    @torch.no_grad()
    def fuse_for_inference(self) -> "M3DecForImageSegmentation":
        """Fold batch norms and upsampling into the convolutions, in place, and lay these out as a CPU likes them.

        Logits change by rounding alone. The model, which is also returned, can then neither be trained nor saved, for
        its batch norms are gone. A second call does nothing. `examples/benchmarks/benchmark_inference.py` measures it.

        Raises:
            ValueError: the model is in training mode.
        """
        if self.training:
            raise ValueError("Only a model in eval mode can be fused, but this one is in training. Call eval() first.")
        if not self.fused:
            fuse_vision_encoder(self.model.vision_encoder, self.config.image_size)
            fuse_mask_decoder(self.mask_decoder)
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
            labels: (N, H, W), 1 on the object, 0 elsewhere and -100 where no loss counts, in the frame of
                `pixel_values`, or at the original size where that was stretched. They are area-resized to the logits'
                size and count as object from a half on.

        Raises:
            ValueError: an input is missing or does not fit the others; the message says which and how.
        """
        check_labels(labels, input_ids)
        inputs = pixel_values, input_ids, attention_mask, image_index, image_features
        outputs = self.model(*inputs, output_attentions, output_hidden_states, output_pixels=True, return_dict=True)
        decoded, word_mask = outputs.last_hidden_state, real_words(input_ids, attention_mask)
        eager = self.config._attn_implementation == "eager"
        logits = self.mask_decoder(decoded, outputs.pixels, word_mask, eager)  # (N, h, w)

        loss = cross_entropy = reconstruction_loss = None
        if labels is not None:
            precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
            target = masks_at(labels, precise)
            cross_entropy = mask_loss(precise, target)  # L_mask
            loss = self.config.mask_loss_weight * cross_entropy
            if self.config.dice_loss_weight:
                loss = loss + self.config.dice_loss_weight * dice_loss(precise, target)
            if self.training and self.language_reconstruction is not None:
                reconstruction_loss = self.language_reconstruction(
                    outputs.word_features, outputs.sentence_features, decoded, word_mask
                )  # L_rec
                loss = loss + self.config.reconstruction_loss_weight * reconstruction_loss  # Eq. 5
        features = {name: feature for name, feature in outputs.items() if name != "pixels"}
        return M3DecImageSegmentationOutput(
            loss=loss, mask_loss=cross_entropy, reconstruction_loss=reconstruction_loss, logits=logits, **features
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
        load_parts(model, backbone, word_vectors, text_encoder)
        return model
