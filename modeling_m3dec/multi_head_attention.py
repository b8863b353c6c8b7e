"""Multi-head attention, and the feed-forward block that follows it: the ordinary parts of Figs. 2, 3(c) and 6."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_KEYS = 64  # on a CPU the fused kernel's backward took 30% of a training step with 15 words


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads.

    Its projections are bare, without § IV-A's BN and ReLU (ours): a key after ReLU could not express a negative score.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None = None, eager: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Let `queries` (N, L, C) look at `keys` and `values` (N, M, C).

        Args:
            key_mask: (N, M) bool, False on keys that must not be seen; None sees all.
            eager: plain matrix products, which also return the weights (N, heads, L, M). Else they are None, and many
                keys go through torch's fused kernel; for a few words the plain products are faster.
        """
        split = (self.num_heads, -1)
        query = self.query(queries).unflatten(-1, split).transpose(1, 2)  # (N, heads, L, C / heads)
        key = self.key(keys).unflatten(-1, split).transpose(1, 2)
        value = self.value(values).unflatten(-1, split).transpose(1, 2)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if eager or keys.shape[1] <= FEW_KEYS:
            scores = query * query.shape[-1] ** -0.5 @ key.mT
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(dim=-1)
            attended = F.dropout(weights, dropout) @ value
        else:
            weights = None
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2)), weights if eager else None


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them, on each position by itself."""

    def __init__(self, hidden_size: int, width: int, dropout: float = 0.0):
        super().__init__(nn.Linear(hidden_size, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, hidden_size))
