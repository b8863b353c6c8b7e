"""The one path from images and expressions to masks (§ III, Fig. 2), for pipeline, evaluation, `infer` and demo."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .images import rgb_arrays
from .processing_m3dec import M3DecProcessor

logger = logging.get_logger(__name__)

EXPRESSIONS_AT_ONCE = 32  # in the mask decoder, where each takes some 100 MB at the paper's size


class Segmenter:
    """Answers expressions about images. Each image is encoded once, however many expressions are about it.

    Args:
        model: `M3DecForImageSegmentation`, in eval mode.
        processor: the model's `M3DecProcessor`.
        remembered_images: of how many images the features are kept for later calls; the latest ones.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(self, model: PreTrainedModel, processor: M3DecProcessor, remembered_images: int = 0):
        if model.training:
            raise ValueError(
                "Only a model in eval mode answers, but this one is in training mode: dropout would blur its answers, "
                "and each image would change its batch norms. Call model.eval() first, also after a training."
            )
        known, rows = len(processor.tokenizer), len(model.get_input_embeddings().weight)
        if known != rows:
            logger.warning_once(
                f"The processor's tokenizer knows {known} words, but the model has rows for {rows}. If the processor "
                "is another model's, the answers mean nothing: load both from one folder."
            )
        self.model, self.processor, self.remembered_images = model, processor, remembered_images
        self._features = OrderedDict()  # key of an image → its F_enc (1, P, C); the last used stands last

    @torch.inference_mode()
    def __call__(
        self, images, expressions: list[str], image_index: list[int], threshold: float = 0.5
    ) -> Iterator[dict]:
        """Answer each of N expressions about its image, one after the other.

        Args:
            images: B images of the kinds that `rgb_array` takes.
            expressions: N expressions.
            image_index: for each expression the number of its image, 0 to B - 1.
            threshold: a pixel belongs to the object where its probability is above this, between 0 and 1.

        Yields:
            N dicts as `M3DecProcessor.post_process_referring_segmentation` makes them, with masks at the images' sizes.

        Raises:
            ValueError: an image cannot be read, an expression holds no word, or the threshold is no probability.
        """
        arrays = rgb_arrays(images)
        words, features = self.processor(text=expressions), self.encode(arrays)
        for start in range(0, len(expressions), EXPRESSIONS_AT_ONCE):
            part = slice(start, start + EXPRESSIONS_AT_ONCE)
            logits = self.logits(features, words["input_ids"][part], words["attention_mask"][part], image_index[part])
            yield from self.answers(logits, [arrays[number].shape[:2] for number in image_index[part]], threshold)

    def encode(self, images: list[np.ndarray]) -> Tensor:
        """F_enc (B, P, C) of B images, uint8 (H_i, W_i, 3); those that are remembered are not encoded again."""
        if not self.remembered_images:
            return self._encode(images)
        keys = [image_key(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._features}
        if new:
            self._features.update(zip(new, self._encode(list(new.values())).split(1), strict=True))
        for key in keys:
            self._features.move_to_end(key)
        features = torch.cat([self._features[key] for key in keys])
        while len(self._features) > self.remembered_images:
            self._features.popitem(last=False)
        return features

    def remembers(self, image: np.ndarray) -> bool:
        """Whether `encode` need not encode this image again."""
        return image_key(image) in self._features

    def _encode(self, images: list[np.ndarray]) -> Tensor:
        pixel_values = self.processor(images=images)["pixel_values"]
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        return self.model.get_image_features(pixel_values, return_dict=True).last_hidden_state

    def logits(self, image_features: Tensor, input_ids: Tensor, attention_mask: Tensor, image_index) -> Tensor:
        """Logits (N, h, w) of N expressions, `EXPRESSIONS_AT_ONCE` at a time, in float32.

        Args:
            image_features: F_enc (B, P, C), of `encode`.
            input_ids, attention_mask: (N, T), of the processor.
            image_index: N numbers, a list or a tensor: the image of each expression.
        """
        device = self.model.device
        words = [torch.as_tensor(each, device=device) for each in (input_ids, attention_mask, image_index)]
        parts = [
            self.model(
                input_ids=ids, attention_mask=mask, image_index=index, image_features=image_features
            ).logits.float()
            for ids, mask, index in zip(*(each.split(EXPRESSIONS_AT_ONCE) for each in words), strict=True)
        ]
        return torch.cat(parts)

    def answers(
        self, logits: Tensor, sizes: list[tuple[int, int]], threshold: float = 0.5, return_scores: bool = True
    ) -> list[dict]:
        """Masks, scores and peaks out of logits; `sizes` has the (height, width) of each expression's image."""
        return self.processor.post_process_referring_segmentation(logits, sizes, threshold, return_scores)


def image_key(image: np.ndarray) -> bytes:
    """The same for the same pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).data).digest()
