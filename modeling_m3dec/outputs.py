"""What the models give: `ModelOutput`s as transformers has them, in the paper's symbols.

B images, N expressions, T words, P pixels of the feature map, C channels.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class M3DecModelOutput(ModelOutput):
    """What `M3DecModel` gives.

    Attributes:
        last_hidden_state: F_dec, (N, T, C). Rows of padded words mean nothing.
        image_features: F_enc, (B, P, C): a function of the images alone, to be given back as `image_features=`.
        word_features: F_t, (N, T, C).
        sentence_features: F_t', (N, 1, C).
        hidden_states: F_t, then F_dec of each decoder layer, (N, T, C) each; on request.
        attentions: self-attention weights of each decoder layer, (N, heads, T, T); on request.
        cross_attentions: cross-attention weights of each decoder layer, (N, heads, T, T), or (N, heads, T, P) where the
            mutual attention is VAL only; on request.
        mutual_attentions: A_mut of each decoder layer before any softmax, (N, T, P); on request.
        pixels: F_enc of the image that each expression is about, (N, P, C); on request.
    """

    last_hidden_state: Tensor | None = None
    image_features: Tensor | None = None
    word_features: Tensor | None = None
    sentence_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    mutual_attentions: tuple[Tensor, ...] | None = None
    pixels: Tensor | None = None


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


def chosen(states: list[Tensor], asked: bool | list[int] | None) -> tuple[Tensor | None, ...] | None:
    """`output_hidden_states` as transformers reads it: all, none, or those of the numbers `asked`, the rest None."""
    if asked is None or isinstance(asked, bool):
        return tuple(states) if asked else None
    kept = {number % len(states) for number in asked}
    return tuple(state if number in kept else None for number, state in enumerate(states))
