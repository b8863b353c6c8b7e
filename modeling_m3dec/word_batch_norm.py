"""Batch normalization over words: the "Batch Normalization" of § IV-A where rows are words and some are padding."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class WordBatchNorm(nn.Module):
    """BN over the real words of a batch, so that padding changes no statistic.

    The norm itself is an `nn.BatchNorm1d`, so that `convert_sync_batchnorm` finds it. In eval it is an affine map of
    every row, padded ones included, without indexing. A model in float16 has it in float32: the variances of M3Att's
    sums over pixels reach 1e8, and float16 ends at 65504.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(hidden_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WordBatchNorm":
        """Like `nn.Module._apply`, which all moves and casts go through, but what would become float16 only moves."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype == torch.float16 else moved

        return super()._apply(move, recurse)

    def train(self, mode: bool = True) -> "WordBatchNorm":
        """Like `nn.Module.train`, but a frozen norm keeps its statistics."""
        super().train(mode)
        keep_frozen_statistics(self)
        return self

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Normalize `words` (N, T, C). `word_mask` (N, T) is False on padding, whose rows are zeros in training.

        Raises:
            ValueError: the training batch has one single real word, of which no variance can be taken.
        """
        if not self.norm.training:
            return self.norm(words.flatten(0, 1)).view_as(words)
        rows = words[word_mask]
        if len(rows) == 1 and type(self.norm) is nn.BatchNorm1d:
            raise ValueError(
                "Batch normalization needs at least two words in a training batch, but this batch is one expression "
                "of one word. Use a larger batch, or freeze the batch norms (model.eval())."
            )
        normed = self.norm(rows)
        return words.new_zeros(words.shape, dtype=normed.dtype).masked_scatter(word_mask[..., None], normed)


def keep_frozen_statistics(module: nn.Module) -> None:
    """Put batch norms with a frozen weight back into eval: the files of an adapter do not hold their statistics."""
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.affine and not norm.weight.requires_grad:
            norm.eval()
