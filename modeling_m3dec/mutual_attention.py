"""Multi-Modal Mutual Attention, M3Att: § III-A, Fig. 3(b), Eqs. 1, 2a and 2b, and the columns of Table I."""

import torch
from torch import Tensor, nn

from .grids import gather_for_filters, resize_filters
from .word_batch_norm import WordBatchNorm


class MutualAttention(nn.Module):
    """Words look at pixels, pixels look at words, and what each saw is multiplied together.

    Single-headed, with the scale 1 / sqrt(C): Eqs. 1 and 2 as written. (§ IV-A's "head number is 8 for all transformer
    layers" holds for the multi-head attentions around it.) No residual: the output "can keep its property as a
    multi-modal feature". Its linear projections are bare, as in the equations. The two sets may be of any two
    modalities; `words` and `pixels` name them as the paper uses them.

    Args:
        hidden_size: C.
        num_pixels: P of the square grid that the last layer is made for. On other square grids F_mul is brought to it.
        variant: a column of Table I: "shared", "independent", "language_attended_vision" (LAV only), or
            "vision_attended_language" (VAL only). Layers a variant does not use do not exist in it.
    """

    def __init__(self, hidden_size: int, num_pixels: int, variant: str = "shared"):
        super().__init__()
        self.variant = variant
        self.num_pixels = num_pixels
        self.scale = hidden_size**-0.5
        self.word_key = nn.Linear(hidden_size, hidden_size)
        self.pixel_key = nn.Linear(hidden_size, hidden_size)
        if variant != "vision_attended_language":
            self.pixel_value = nn.Linear(hidden_size, hidden_size)
        if variant != "language_attended_vision":
            self.word_value = nn.Linear(hidden_size, hidden_size)
        if variant == "independent":
            self.second_word_key = nn.Linear(hidden_size, hidden_size)
            self.second_pixel_key = nn.Linear(hidden_size, hidden_size)
        # F_mul has one channel per pixel, so this layer belongs to one grid; a single-modal output has C channels.
        fuses = variant in ("shared", "independent")
        self.output = nn.Linear(num_pixels if fuses else hidden_size, hidden_size)
        self.norm = WordBatchNorm(hidden_size)  # § IV-A: BN and ReLU after a linear layer; statistics from real words

    def forward(
        self, words: Tensor, pixels: Tensor, word_mask: Tensor, pixel_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse `words` (N, T, C) with `pixels` (N, P, C). Masks are False on padding; no pixel mask means no padding.

        Returns:
            the fused feature, (N, T, C), or (N, P, C) for VAL only; and the matrix A_mut before any softmax, (N, T, P).
        """
        if pixel_mask is None:
            pixel_mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
        scores = self.scale * self.word_key(words) @ self.pixel_key(pixels).mT  # (N, T, P)  Eq. 1, A_mut

        if self.variant == "vision_attended_language":
            attended_words = self._look_at_words(scores, words, word_mask)
            return self.norm(self.output(attended_words), pixel_mask).relu(), scores  # (N, P, C)

        lowest = torch.finfo(scores.dtype).min
        attention = scores.masked_fill(~pixel_mask[:, None, :], lowest).softmax(dim=-1)
        attended_pixels = attention @ self.pixel_value(pixels)  # (N, T, C)  Eq. 2a, F_V^a
        if self.variant == "language_attended_vision":
            return self.norm(self.output(attended_pixels), word_mask).relu(), scores

        second_scores = scores
        if self.variant == "independent":
            second_scores = self.scale * self.second_word_key(words) @ self.second_pixel_key(pixels).mT
        attended_words = self._look_at_words(second_scores, words, word_mask)

        fused = attended_pixels @ attended_words.mT  # (N, T, P)  F_mul
        fused = fused.masked_fill(~pixel_mask[:, None, :], 0.0)
        output = self.output(gather_for_filters(fused, self.num_pixels))
        return self.norm(output, word_mask).relu(), scores  # (N, T, C)

    def set_num_pixels(self, num_pixels: int) -> None:
        """Make the last layer one for another grid, where it gives what `forward` gave there before."""
        if self.variant in ("shared", "independent"):
            self.output.weight = nn.Parameter(resize_filters(self.output.weight.detach(), num_pixels))
            self.output.in_features = self.num_pixels = num_pixels

    def _look_at_words(self, scores: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        scores = scores.masked_fill(~word_mask[:, :, None], torch.finfo(scores.dtype).min)
        return scores.mT.softmax(dim=-1) @ self.word_value(words)  # (N, P, C)  Eq. 2b, F_L^a
