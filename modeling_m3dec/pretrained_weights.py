"""Weights from elsewhere: parts that others trained, and what `from_pretrained` of the library leaves to be done."""

import os
import re

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import load_state_dict
from transformers.utils import logging

logger = logging.get_logger(__name__)

ALIGNMENT = 64  # bytes; of the memory that torch allocates on a CPU


def finish_loading(model: nn.Module) -> None:
    """After the library has loaded `model`: freeze again what the config freezes, and move weights.

    The library maps them from the file at odd addresses, where matrix products round differently.
    """
    for module in model.modules():
        if hasattr(module, "freeze_parameters"):
            module.freeze_parameters()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def load_parts(
    model: PreTrainedModel,
    backbone: str | dict[str, Tensor] | None,
    word_vectors: Tensor | None,
    text_encoder: str | dict[str, Tensor] | None,
) -> None:
    """Load the parts that are given into a new M3DecForImageSegmentation; see its `from_pretrained_parts`."""
    language, is_recurrent = model.model.language_encoder, model.config.text_config is None
    if backbone is not None:
        load_part(model.model.vision_encoder.backbone, backbone, "backbone")
    if word_vectors is not None:
        if not is_recurrent:
            raise ValueError("word_vectors belong to the recurrent text side, but text_config is set. Give one.")
        load_word_vectors(language, word_vectors)
    if text_encoder is not None:
        if is_recurrent:
            raise ValueError("text_encoder was given, but config.text_config is None. Set it to the encoder's config.")
        load_part(language.text_encoder, text_encoder, "text_encoder")


@torch.no_grad()
def load_word_vectors(language_encoder: nn.Module, word_vectors: Tensor) -> None:
    """Copy `word_vectors` (V, D); the vector that unknown words share becomes the mean of the rows that are not 0."""
    wanted = tuple(language_encoder.word_vectors.weight.shape)
    if tuple(word_vectors.shape) != wanted:
        raise ValueError(
            f"word_vectors must be (vocab_size, word_vector_size) = {wanted}, but they are "
            f"{tuple(word_vectors.shape)}. Set these two fields of the config from their shape."
        )
    known = word_vectors[word_vectors.any(dim=1)]
    if len(known) == 0 or not torch.isfinite(known).all():
        raise ValueError(
            f"word_vectors must be finite and not all 0, but {len(known)} of {len(word_vectors)} rows hold anything "
            f"but 0 and {(~torch.isfinite(known)).sum().item()} numbers are not finite. Read them again."
        )
    language_encoder.word_vectors.weight.copy_(word_vectors)
    language_encoder.unknown_word.copy_(known.mean(dim=0))


def load_part(part: PreTrainedModel, source: str | os.PathLike | dict[str, Tensor], name: str) -> None:
    """Copy weights from a folder, hub name or state dict into `part`: all of it, or a ValueError."""

    def plain(key: str) -> str:  # timm writes stages.0.x in a classifier and stages_0.x in its features
        return key.removeprefix("_backbone.").replace(".", "_")

    given = source if isinstance(source, dict) else read_part(part, source, name)
    given = {plain(key): tensor for key, tensor in given.items()}
    wanted = part.state_dict()
    # Counters change nothing, and the norms that a transformers backbone puts after its levels start as new.
    optional = re.compile(r"num_batches_tracked$|^hidden_states_norms\.")
    missing = [key for key in wanted if plain(key) not in given and not optional.search(key)]
    if missing:
        raise ValueError(
            f"The weights for the {name} lack {len(missing)} of its {len(wanted)} tensors, the first {missing[:3]}. "
            "Are they of the architecture that the config names?"
        )
    found = {key: given[plain(key)] for key in wanted if plain(key) in given}
    wrong = [key for key, tensor in found.items() if tensor.shape != wanted[key].shape]
    if wrong:
        raise ValueError(
            f"The weights for the {name} have another shape in {len(wrong)} tensors, the first {wrong[0]}: "
            f"{tuple(found[wrong[0]].shape)} where the config makes {tuple(wanted[wrong[0]].shape)}."
        )
    part.load_state_dict(found, strict=False)
    surplus = len(given) - len(found)
    logger.info("%s: %d tensors loaded, %d of the source not needed.", name, len(found), surplus)


def read_part(part: PreTrainedModel, source: str | os.PathLike, name: str) -> dict[str, Tensor]:
    """The weights in a folder, or under a hub name, for a model like `part`."""
    if part.config.model_type == "timm_backbone":
        # TimmBackbone.from_pretrained knows timm's names only, not a folder it was saved to.
        if os.path.isdir(source):
            return load_state_dict(os.path.join(source, "model.safetensors"))
        with init.no_init_weights():  # it would reset the batch norms' statistics, of pretrained weights too
            return type(part).from_pretrained(source, config=part.config).state_dict()
    loader = AutoModel if name == "text_encoder" else type(part)
    loaded, report = loader.from_pretrained(
        source, config=part.config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    # What the source lacks, from_pretrained makes up at random: only what was really there counts.
    weights = {key: tensor for key, tensor in loaded.state_dict().items() if key not in report["missing_keys"]}
    return weights | {key: torch.empty(shape, device="meta") for key, shape, _ in report["mismatched_keys"]}
