"""Whether the paper's parts are at work in a model: what each does on a few batches that are held out.

What stands in metrics.jsonl, with n from 1, in the order of Fig. 2:

    imi_gate/n          w_ci of the n-th IMI block; near 0 it injects nothing (§ III-B)
    imi_share/n         the norm of what it injects, w_ci included, beside that of the query that it is added to
    silent/n            the share of expressions of which the n-th layer's M3Att gives under SILENT of its query's norm
    word_entropy/n      of the attention over words (Eq. 2b): 1 where all words weigh the same, 0 where one alone counts
    position_entropy/n  the same of the attention over positions (Eq. 2a)
    lfr_error/right     the squared distance of F_rec to F_proj of its own expression, a mean over channels (§ III-C)
    lfr_error/shuffled  the same to F_proj of another expression; LFR tells expressions apart where this is larger
    gradient_norm/part  of each part of the model, after clipping
"""

import functools
from collections import defaultdict

import datasets
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import text_field
from m3dec.mutual_attention import MutualAttention
from m3dec.processing.referring_data.sampling import ReferringExamples

from .parts import collate, normalized

SILENT = 1e-4
BATCHES, IMAGES, EXPRESSIONS = 4, 8, 5  # batches, images of each, expressions of an image at most


def few_batches(
    dataset: datasets.Dataset, processor: M3DecProcessor, config, number: int = BATCHES
) -> list[dict[str, Tensor]]:
    """The model's inputs in `number` batches, always the same, from all over `dataset`, of `REFERRING_FEATURES`."""
    examples = ReferringExamples(
        dataset,
        text_field(config),
        sentences="all",
        expressions_per_image=EXPRESSIONS,
        holds_word=processor.holds_word,
    )
    count = number * IMAGES
    chosen = range(0, len(examples), max(1, len(examples) // count))[:count]
    parts = [chosen[start::number] for start in range(min(number, len(chosen)))]
    batches = [collate([examples[number] for number in part], processor) for part in parts]
    batches = [normalized(batch, processor.image_processor) for batch in batches]
    return [{name: x for name, x in batch.items() if name not in ("labels", "sent_ids")} for batch in batches]


@torch.no_grad()
def diagnose(model: M3DecForImageSegmentation, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """All but the gradient norms, by the names above. The model is left in eval.

    What a variant does not have is left out: without IMI there are no gates, without LFR no errors.
    """
    model.eval()
    found = {f"imi_gate/{n}": [block.interaction_weight] for n, block in enumerate(model.model.interactions, start=1)}
    found = defaultdict(list, found)
    hooks = [
        layer.mutual_attention.register_forward_hook(functools.partial(watch_layer, found, number))
        for number, layer in enumerate(model.model.decoder_layers, start=1)
    ]
    for number, block in enumerate(model.model.interactions, start=1):
        added = []
        hooks.append(block.norm.register_forward_pre_hook(lambda norm, inputs, added=added: added.append(inputs[0])))
        hooks.append(block.register_forward_hook(functools.partial(watch_interaction, found, number, added)))
    try:
        for batch in batches:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            outputs = model(**batch)
            if model.language_reconstruction is not None:
                watch_reconstruction(found, model, outputs, batch["attention_mask"].bool())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(values).nanmean().item() for name, values in found.items()}


def watch_layer(found: dict[str, list], number: int, layer: MutualAttention, inputs: tuple, outputs: tuple) -> None:
    """A forward hook: add to `found` what this M3Att does, a value for each expression."""
    words, pixels, word_mask = inputs[:3]
    fused, scores = outputs
    # VAL only has a row for each pixel, of which none is padding.
    rows_mask = torch.ones_like(fused[..., 0]) if layer.variant == "vision_attended_language" else word_mask
    silent = norm_of_words(fused, rows_mask) < SILENT * norm_of_words(words, word_mask)
    found[f"silent/{number}"].append(silent.float())
    if layer.variant != "vision_attended_language":
        over_positions = evenness(scores, torch.ones_like(scores, dtype=torch.bool))  # (N, T)
        over_positions = over_positions.masked_fill(~word_mask, torch.nan).nanmean(dim=1)
        found[f"position_entropy/{number}"].append(over_positions)
    if layer.variant == "independent":
        scores = layer.scale * layer.second_word_key(words) @ layer.second_pixel_key(pixels).mT
    if layer.variant != "language_attended_vision":
        over_words = evenness(scores.mT, word_mask[:, None, :].expand_as(scores.mT))  # (N, P)
        found[f"word_entropy/{number}"].append(over_words.mean(dim=1))


def watch_interaction(found: dict[str, list], number: int, added: list, block, inputs: tuple, outputs: tuple) -> None:
    """A forward hook: add to `found` how much this IMI block injects. The query with it is the last of `added`."""
    query, _, word_mask = inputs
    injected, query = (norm_of_words(rows, word_mask) for rows in (added.pop() - query, query))
    found[f"imi_share/{number}"].append(injected / query)


def norm_of_words(rows: Tensor, word_mask: Tensor) -> Tensor:
    """The norm of all words (N, T, C) of each expression, without padding: (N,)."""
    return (rows * word_mask[..., None]).float().flatten(1).norm(dim=1)


def watch_reconstruction(found: dict[str, list], model: M3DecForImageSegmentation, outputs, word_mask: Tensor) -> None:
    """Add to `found` how far F_rec of each expression is from its own F_proj, and from that of its neighbor."""
    target = model.language_reconstruction.project(outputs.word_features, outputs.sentence_features, word_mask)
    rebuilt = model.language_reconstruction.reconstruct(outputs.last_hidden_state, word_mask)
    for name, other in {"right": target, "shuffled": target.roll(1, dims=0)}.items():
        found[f"lfr_error/{name}"].append((rebuilt - other).float().square().mean(dim=1))


def evenness(scores: Tensor, mask: Tensor) -> Tensor:
    """The entropy of softmax(`scores`) over the last axis where `mask` is True, as a share of the largest there can be.
    NaN where it is True once alone."""
    logs = scores.float().masked_fill(~mask, -torch.inf).log_softmax(dim=-1)
    entropy = -(logs.exp() * logs.masked_fill(~mask, 0.0)).sum(dim=-1)
    return entropy / mask.sum(dim=-1).float().log()


def gradient_norms(model: M3DecForImageSegmentation) -> dict[str, Tensor]:
    """The norm of the gradients that each part has now, scalars. A part that the model does not have is left out."""
    inner = model.model
    parts = {
        "vision_encoder": [inner.vision_encoder, inner.encoder_layers],
        "language_encoder": [inner.language_encoder],
        "decoder_layers": [inner.decoder_layers],
        "interactions": [inner.interactions],
        "language_reconstruction": [model.language_reconstruction],
        "mask_decoder": [model.mask_decoder],
    }
    norms = {}
    for name, modules in parts.items():
        own = [parameter for module in modules if module is not None for parameter in module.parameters()]
        gradients = [parameter.grad for parameter in own if parameter.grad is not None]
        if gradients:
            norms[f"gradient_norm/{name}"] = get_total_norm(gradients)
    return norms
