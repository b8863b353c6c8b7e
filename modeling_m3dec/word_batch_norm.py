"""Batch normalization over words: the "Batch Normalization" of § IV-A where rows are words and some are padding."""

from torch import Tensor, nn


class WordBatchNorm(nn.Module):
    """BN over the real words of a batch, so that padding changes no statistic.

    The norm itself is an `nn.BatchNorm1d`, so that `convert_sync_batchnorm` finds it. In eval it is an affine map of
    every row, padded ones included, without indexing.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(hidden_size)

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
