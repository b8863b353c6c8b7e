"""Iterative Multi-Modal Interaction, IMI: § III-B, Fig. 4, Eq. 3, and IMI* of Table II."""

import torch
from torch import Tensor, nn

from .word_batch_norm import WordBatchNorm

INITIAL_WEIGHT = 0.1  # w_ci; ours: at 0 nothing of this block but the weight itself would have a gradient at first


class IterativeInteraction(nn.Module):
    """Between two decoder layers, the query asks the language what it has lost, and the language is carried on."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.language_transform = nn.Linear(hidden_size, hidden_size)  # bare, as W_a and W_l' beside it (ours)
        self.query_projection = nn.Linear(hidden_size, hidden_size, bias=False)  # W_a
        self.language_projection = nn.Linear(hidden_size, hidden_size, bias=False)  # W_l'
        self.interaction_weight = nn.Parameter(torch.full((1,), INITIAL_WEIGHT))  # w_ci; FSDP2 takes no scalars
        self.norm = WordBatchNorm(hidden_size)

    def forward(self, query: Tensor, language: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """From F_dec^n and F_l^(n-1), both (N, T, C), to F_dec'^n and F_l^n. `word_mask` (N, T) is False on padding."""
        language = self.language_transform(language)  # (N, T, C)  F_l^n
        scores = self.query_projection(query).relu() @ language.mT  # (N, T, T)
        scores = scores.masked_fill(~word_mask[:, None, :], torch.finfo(scores.dtype).min)
        injected = scores.softmax(dim=-1) @ self.language_projection(language).relu()  # (N, T, C)  Eq. 3, A_l^n F_l'^n
        return self.norm(query + self.interaction_weight * injected, word_mask), language


class StaticInteraction(nn.Module):
    """IMI* of Table II: every layer is given the same words, F_i^n = F_t, without attention or transformation."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.interaction_weight = nn.Parameter(torch.full((1,), INITIAL_WEIGHT))  # w_ci; FSDP2 takes no scalars
        self.norm = WordBatchNorm(hidden_size)

    def forward(self, query: Tensor, language: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """From F_dec^n and F_t, both (N, T, C), to F_dec'^n and F_t unchanged."""
        return self.norm(query + self.interaction_weight * language, word_mask), language
