"""From words to F_t and F_t': § III, Fig. 2 (left): word vectors and a bidirectional LSTM or GRU, or BERT."""

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from .outputs import chosen


class RecurrentLanguageEncoder(nn.Module):
    """Word vectors (V, D), then one recurrent layer read from both ends, C / 2 channels each way.

    Unknown words share one vector, which is trained even where all others are frozen. `M3DecConfig` explains the
    arguments.
    """

    def __init__(
        self,
        vocab_size: int,
        word_vector_size: int,
        hidden_size: int,
        unk_token_id: int = 1,
        recurrent_type: str = "lstm",
        freeze_word_vectors: bool = True,
    ):
        super().__init__()
        self.unk_token_id = unk_token_id
        self.freeze_word_vectors = freeze_word_vectors
        self.word_vectors = nn.Embedding(vocab_size, word_vector_size)
        self.unknown_word = nn.Parameter(torch.zeros(word_vector_size))
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[recurrent_type]
        # Two networks instead of one bidirectional one: the second reads each expression reversed by its own length, so
        # that padding never leaks into it and nothing is packed (packing breaks torch.export).
        self.forward_recurrent = recurrent(word_vector_size, hidden_size // 2, batch_first=True)
        self.backward_recurrent = recurrent(word_vector_size, hidden_size // 2, batch_first=True)
        self.freeze_parameters()

    def freeze_parameters(self) -> None:
        """Take the gradient from what the settings freeze: here, and again after loading."""
        if self.freeze_word_vectors:
            self.word_vectors.requires_grad_(False)

    def forward(
        self, input_ids: Tensor, word_mask: Tensor, output_attentions: bool = False, output_hidden_states: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None, tuple | None]:
        """From `input_ids` (N, T) int64, padded on the right, to F_t (N, T, C) and F_t' (N, 1, C).

        Returns:
            both; then, on request, the word vectors (N, T, D) with F_t, and () for the attentions that it has not.
        """
        unknown = (input_ids == self.unk_token_id)[..., None]
        vectors = torch.where(unknown, self.unknown_word, self.word_vectors(input_ids))  # (N, T, D)
        lengths = word_mask.sum(dim=1, keepdim=True)  # (N, 1)
        position = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        reverse = torch.where(position < lengths, lengths - 1 - position, position)[..., None]  # (N, T, 1)

        ahead = hidden_states_of(self.forward_recurrent, vectors)  # (N, T, C/2)
        back = hidden_states_of(self.backward_recurrent, vectors.gather(1, reverse.expand_as(vectors)))
        last = (lengths - 1)[..., None].expand(-1, 1, ahead.shape[-1])  # of each expression, its last real word
        sentence = torch.cat([ahead.gather(1, last), back.gather(1, last)], dim=-1)  # (N, 1, C)  F_t'
        words = torch.cat([ahead, back.gather(1, reverse.expand_as(back))], dim=-1)  # (N, T, C)  F_t
        return words, sentence, chosen([vectors, words], output_hidden_states), () if output_attentions else None


def hidden_states_of(network: nn.LSTM | nn.GRU, vectors: Tensor) -> Tensor:
    """The hidden states of `network` on `vectors`, on a CPU without autocast: there torch's bfloat16 LSTM may fail."""
    if vectors.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return network(vectors)[0]
    return network(vectors)[0]


class BertLanguageEncoder(nn.Module):
    """A BERT-like encoder: every piece is a word, [CLS] and [SEP] too, and [CLS] also stands for the expression.

    `text_config` is that of any `AutoModel` that takes input_ids and attention_mask and gives last_hidden_state. With
    `freeze_sentence`, for where no loss reaches F_t', the linear layer of F_t' stays a fixed random projection.
    """

    def __init__(self, text_config: PreTrainedConfig, hidden_size: int, freeze_sentence: bool = False):
        super().__init__()
        self.freeze_sentence = freeze_sentence
        self.text_encoder = AutoModel.from_config(text_config, dtype=torch.get_default_dtype())
        if getattr(self.text_encoder, "pooler", None) is not None:
            self.text_encoder.pooler = None  # nothing here reads it, so it could never be trained
        self.word_projection = nn.Linear(text_config.hidden_size, hidden_size)
        self.sentence_projection = nn.Linear(text_config.hidden_size, hidden_size)
        self.freeze_parameters()

    def freeze_parameters(self) -> None:
        """Take the gradient from what the settings freeze: here, and again after loading."""
        if self.freeze_sentence:
            self.sentence_projection.requires_grad_(False)

    def forward(
        self, input_ids: Tensor, word_mask: Tensor, output_attentions: bool = False, output_hidden_states: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """From `input_ids` (N, T) int64 to F_t (N, T, C) and F_t' (N, 1, C).

        Returns:
            both; then, on request, the text encoder's hidden states and attentions, which are as wide as it is.
        """
        outputs = self.text_encoder(
            input_ids=input_ids,
            attention_mask=word_mask.long(),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        words, sentence = self.word_projection(hidden), self.sentence_projection(hidden[:, :1])
        return words, sentence, outputs.hidden_states, outputs.attentions
