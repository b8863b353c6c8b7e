"""Language Feature Reconstruction, LFR: § III-C, Fig. 5, Eq. 4. Training only; inference does not touch it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import sine_positions
from .word_batch_norm import WordBatchNorm


class LanguageReconstruction(nn.Module):
    """Makes the decoder's output keep what the expression says: the distance between a summary of each.

    Args:
        hidden_size: C, also the width of the three linear layers (ours; the paper gives none).
        detached: no gradient into F_proj, whose W_proj is then a fixed random projection, saved with the weights.
        normalized: BN and ReLU also after the third linear layer, as § IV-A says of all. Without them, gradients
            through both sides drive F_proj itself to a constant: in 600 steps on photographs its spread over the batch
            fell from .008 to .0003; with them it grew to .05.
    """

    def __init__(self, hidden_size: int, detached: bool = False, normalized: bool = True):
        super().__init__()
        self.projection = nn.Linear(hidden_size, hidden_size, bias=False)  # W_proj
        self.detached = detached
        self.first = nn.Linear(hidden_size, hidden_size)
        self.first_norm = WordBatchNorm(hidden_size)
        self.second = nn.Linear(hidden_size, hidden_size)
        self.second_norm = WordBatchNorm(hidden_size)
        self.third = nn.Linear(hidden_size, hidden_size)
        self.third_norm = WordBatchNorm(hidden_size) if normalized else None
        self.freeze_parameters()

    def freeze_parameters(self) -> None:
        """Take the gradient from what the settings freeze: here, and again after loading."""
        if self.detached:
            self.projection.requires_grad_(False)

    def forward(self, words: Tensor, sentence: Tensor, decoded: Tensor, word_mask: Tensor) -> Tensor:
        """The mean squared error between F_proj and F_rec, a scalar.

        Args:
            words: F_t, (N, T, C).
            sentence: F_t', (N, 1, C).
            decoded: F_dec, (N, T, C).
            word_mask: (N, T), False on padding.
        """
        target = self.project(words, sentence, word_mask)
        return F.mse_loss(self.reconstruct(decoded, word_mask), target.detach() if self.detached else target)

    def project(self, words: Tensor, sentence: Tensor, word_mask: Tensor) -> Tensor:
        """The summary of the expression, F_proj, (N, C)."""
        positions = sine_positions(words.shape[1], words.shape[2], words.device).to(words.dtype)  # e
        projected = self.projection(torch.cat([words + positions, sentence], dim=1)).relu()  # (N, T + 1, C)
        mask = torch.cat([word_mask, word_mask.new_ones(len(words), 1)], dim=1)
        return _mean(projected, mask)  # (N, C)  Eq. 4

    def reconstruct(self, decoded: Tensor, word_mask: Tensor) -> Tensor:
        """The summary of the decoder's output, F_rec, (N, C)."""
        hidden = self.first_norm(self.first(decoded), word_mask).relu()
        hidden = self.second_norm(self.second(hidden), word_mask).relu()
        hidden = self.third(hidden)
        if self.third_norm is not None:
            hidden = self.third_norm(hidden, word_mask).relu()
        return _mean(hidden, word_mask)  # (N, C)  Fig. 5


def _mean(rows: Tensor, mask: Tensor) -> Tensor:
    """The mean of the rows (N, L, C) whose mask (N, L) is True: (N, C)."""
    return rows.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
