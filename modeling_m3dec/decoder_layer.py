"""One layer of the Multi-Modal Mutual Decoder, M3Dec: § III-A, Fig. 3(c)."""

from torch import Tensor, nn

from .multi_head_attention import FeedForward, MultiHeadAttention
from .mutual_attention import MutualAttention


class DecoderLayer(nn.Module):
    """Words look at each other, fuse with the pixels, and query what came of it.

    Residuals with post-norm stand around both multi-head attentions and none around M3Att (ours: the paper draws none;
    without them and the feed-forward block a small model still predicted a constant after 200 steps).
    """

    def __init__(
        self,
        hidden_size: int,
        num_pixels: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        mutual_attention: str = "shared",
    ):
        super().__init__()
        self.self_attention = MultiHeadAttention(hidden_size, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        self.mutual_attention = MutualAttention(hidden_size, num_pixels, mutual_attention)
        self.cross_attention = MultiHeadAttention(hidden_size, num_heads, dropout)
        self.cross_attention_norm = nn.LayerNorm(hidden_size)
        if ffn_dim:
            self.feed_forward = FeedForward(hidden_size, ffn_dim, dropout)
            self.feed_forward_norm = nn.LayerNorm(hidden_size)
        else:
            self.feed_forward = None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, pixels: Tensor, word_mask: Tensor, eager: bool = False
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor, Tensor | None]]:
        """From `query` (N, T, C) and `pixels` (N, P, C) to the layer's output F_dec (N, T, C).

        Returns:
            the output; and what was attended: self-attention weights (N, heads, T, T), A_mut (N, T, P), cross-attention
            weights (N, heads, T, T), or (N, heads, T, P) for VAL only. The first and last are None unless `eager`.
        """
        attended, self_weights = self.self_attention(query, query, query, word_mask, eager)
        query = self.self_attention_norm(query + self.dropout(attended))  # (N, T, C)  F_q

        fused, scores = self.mutual_attention(query, pixels, word_mask)  # (N, T, C)
        # VAL only has a row per pixel; every other fused feature has a row per word, padding included.
        fused_mask = None if self.mutual_attention.variant == "vision_attended_language" else word_mask
        attended, cross_weights = self.cross_attention(query, fused, fused, fused_mask, eager)
        query = self.cross_attention_norm(query + self.dropout(attended))

        if self.feed_forward is not None:
            query = self.feed_forward_norm(query + self.dropout(self.feed_forward(query)))
        return query, (self_weights, scores, cross_weights)
