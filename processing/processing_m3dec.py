"""Images, expressions and masks to a batch, and logits back to masks: the two ends of § III, Fig. 2."""

import re
import unicodedata
from itertools import chain, takewhile
from threading import Lock
from typing import TypedDict

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .image_processing_m3dec import M3DecImagesKwargs
from .images import holds_many, in_a_list, mask_arrays, rgb_arrays
from .letterbox import inside_letterbox, letterbox_size
from .masks import interpolate, large_answer

logger = logging.get_logger(__name__)

TOKENIZING = Lock()
PIXELS_AT_ONCE = 2**20  # of masks in post-processing, where every pixel is computed: see `large_answer` for larger ones

# Characters that show nothing, as a pattern that Python and a tokenizer read alike: Unicode's format characters (Cf),
# variation selectors and fillers. U+200B stays behind Thai, Lao, Burmese and Khmer, where it stands between words.
INVISIBLE = (
    "[\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f"
    "\u202a-\u202e\u2060-\u2064\u2066-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b"
)


class M3DecTextKwargs(TypedDict, total=False):
    """What a call may say about the expressions."""

    padding: bool | str | None
    truncation: bool | str | None
    max_length: int | None
    return_tensors: str | None


class M3DecProcessorKwargs(ProcessingKwargs, total=False):
    """What a call may say: by itself, as in `max_length=5`, or in a group, as in `text_kwargs={"max_length": 5}`."""

    text_kwargs: M3DecTextKwargs
    images_kwargs: M3DecImagesKwargs


class M3DecProcessor(ProcessorMixin):
    """An image processor and a tokenizer as one, with the number of words the network was built for.

    Args:
        image_processor: `M3DecImageProcessor` or `M3DecImageProcessorPil`.
        tokenizer: a fast tokenizer with a padding token, over word vectors or BERT's.
        max_words: the model's `config.max_words`, T at most (§ IV-A: 15, and 20 for RefCOCOg). [CLS] and [SEP] count.
    """

    valid_processor_kwargs = M3DecProcessorKwargs
    text_kwargs = {"padding": "longest", "truncation": True, "return_tensors": "pt"}  # noqa: RUF012
    images_kwargs = {"return_tensors": "pt"}  # noqa: RUF012

    def __init__(self, image_processor=None, tokenizer=None, max_words=15):
        super().__init__(image_processor, tokenizer)
        special = tokenizer.num_special_tokens_to_add()
        if max_words <= special:
            raise ValueError(
                f"max_words must leave room for at least one word beside the tokenizer's {special} special tokens, but "
                f"it is {max_words}. Use the model's config.max_words: 15 in the paper, 20 for RefCOCOg."
            )
        self.max_words = max_words

    def __call__(
        self, images=None, text=None, segmentation_maps=None, **kwargs: Unpack[M3DecProcessorKwargs]
    ) -> BatchFeature:
        """Pair images with expressions, and optionally with the masks of the objects they refer to.

        Images or text may come alone, for `model.get_image_features` and for `model(image_features=…)`.

        Args:
            images: one image or several, each a PIL image, a path, a uint8 array (H_i, W_i, 3) or another kind that
                `rgb_array` takes. Sizes may differ. Several may come as a list, tuple, column, Series or array.
            text: one expression per image; several for one image; or a list of expressions for each image. Lists may
                come as for images.
            segmentation_maps: one binary mask (H_i, W_i) per expression, in the shape of `text`, 1 (or 255, or True) on
                the object. Needed only for a loss.
            kwargs: by themselves or in `text_kwargs`, `images_kwargs` or `common_kwargs`:
                padding: "longest" or True, to the longest expression of the batch; "max_length"; or False.
                max_length: how many words are kept, and padded to; at most `max_words`, which is the default.
                truncation: False refuses an expression of more words instead of cutting it off.
                return_tensors: "pt", "np", or None for lists.
                others: of the image processor, such as `size` (not where it letterboxes) and `timeout`.

        Returns:
            pixel_values: (B, 3, S, S) float32, stretched to S x S or letterboxed, then normalized per channel.
            input_ids, attention_mask: (N, T) int64; the mask is 1 on words and 0 on padding. Expressions are cut off
                after `max_length`, with a warning the first time.
            image_index: (N,) int64, the row of pixel_values each expression is about. Absent where N == B, and where
                the image is given and is the only one.
            labels: (N, S, S) float32, 0.0 or 1.0, in the frame of pixel_values. Absent without segmentation_maps.

        Raises:
            ValueError: the lists do not fit together, an expression holds no word, an image cannot be read, a mask is
                not binary or does not fit its image, or a call would change the frame of the image.
            TypeError: a keyword is unknown, or there is no image for it.
        """
        if images is None and text is None:
            raise ValueError("Images or text are needed, but neither was given. Call processor(images=…, text=…).")
        if segmentation_maps is not None and (images is None or text is None):
            missing = "images" if images is None else "text"
            raise ValueError(
                f"segmentation_maps belong to an expression about an image, but {missing} is missing. Give all three."
            )
        check_keywords(kwargs, without_images=images is None)
        of_text, of_images = self._settings(kwargs)
        return_tensors = (of_images if text is None else of_text)["return_tensors"]
        data, arrays, masks = {}, None, None
        if images is not None:
            layout, timeout = (of_images.pop(name, None) for name in ("input_data_format", "timeout"))
            arrays = rgb_arrays(images, layout, timeout)
        if text is not None:
            expressions, image_index = pair_with_images(text, None if arrays is None else len(arrays))
            data.update(self._tokenize(expressions, of_text))
            num_images = image_index[-1] + 1
            if num_images < len(expressions) and (num_images > 1 or images is None):
                data["image_index"] = image_index
        if segmentation_maps is not None:
            masks = masks_of_expressions(segmentation_maps, [arrays[i].shape[:2] for i in image_index])
            masks = [mask.view(bool) for mask in masks]  # checked already, so not once more
        if images is not None:
            data.update(self.image_processor(arrays, masks, **of_images | {"return_tensors": return_tensors}))
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]  # a name of BERT's tokenizer

    def _settings(self, kwargs: dict) -> tuple[dict, dict]:
        """The settings of a call for text and for images: those of `kwargs`, else of the tokenizer, else our own."""
        own = dict(self.tokenizer.init_kwargs)
        if (own.get("max_length") or 0) > self.max_words:  # such as 128, of BERT's own training
            own.pop("max_length")
        merged = self._merge_kwargs(tokenizer_init_kwargs=own, **kwargs)
        of_text, of_images = merged["text_kwargs"], merged["images_kwargs"]
        of_text["max_length"] = of_text.get("max_length") or self.max_words
        special = self.tokenizer.num_special_tokens_to_add()
        if not special < of_text["max_length"] <= self.max_words:
            raise ValueError(
                f"max_length must be {special + 1} to {self.max_words}, the model's max_words, but it is "
                f"{of_text['max_length']}. Leave it out, or use a model built for more words."
            )
        if of_text["padding"] not in (True, False, None, "longest", "max_length", "do_not_pad"):
            raise ValueError(
                f"padding must be 'longest', 'max_length' or False, but it is {of_text['padding']!r}. Leave it out for "
                "'longest'."
            )
        return of_text, of_images

    def holds_word(self, expression: str) -> bool:
        """Whether `expression` can be asked: it is not blank or punctuation, and has a word for the tokenizer."""
        try:
            self._tokenize([expression], {"max_length": self.max_words, "padding": False, "truncation": True})
        except ValueError:
            return False
        return True

    def _tokenize(self, expressions: list[str], settings: dict) -> dict:
        """Expressions as `input_ids` and `attention_mask`, (N, T), T at most `max_length`, padded on the right."""
        expressions = [text.encode("utf-8", "replace").decode() for text in expressions]  # no lone surrogates
        visible = [re.sub(INVISIBLE, "", text) for text in expressions]  # older tokenizers split a word there
        max_length, padding = settings["max_length"], settings["padding"]
        with TOKENIZING:  # a tokenizer keeps its padding and truncation in itself, where another thread may set them
            tokens = self.tokenizer(
                visible,
                truncation=True,
                max_length=max_length,
                padding=False,
                return_special_tokens_mask=True,
                return_overflowing_tokens=True,  # as further rows
                verbose=False,
            )
        first = {}  # expression → its first row
        for row, number in enumerate(tokens["overflow_to_sample_mapping"]):
            first.setdefault(number, row)
        for expression, row in zip(expressions, first.values(), strict=True):
            if not has_letter_or_sign(expression) or all(tokens["special_tokens_mask"][row]):
                raise no_word_in(expression)
        if len(first) < len(tokens["input_ids"]):
            limit = f"max_words={max_length}" if max_length == self.max_words else f"max_length={max_length}"
            if settings["truncation"] in (False, "do_not_truncate"):
                raise ValueError(f"An expression has more than {limit} words. Rephrase it, or leave truncation out.")
            logger.warning_once(
                f"Expressions of more than {limit} words are cut off there. Rephrase them in fewer words, or use a "
                "model trained with more. This is said once."
            )
        rows = [tokens["input_ids"][row] for row in first.values()]
        if padding in (False, None, "do_not_pad"):
            return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        length = max_length if padding == "max_length" else max(map(len, rows))
        input_ids = [row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows]
        attention_mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def post_process_referring_segmentation(
        self, outputs, target_sizes=None, threshold=0.5, return_scores=True
    ) -> list[dict]:
        """Turn logits into one mask per expression: interpolate the logits, then threshold the probability.

        Where the image processor letterboxes, the logits are brought to S x S first, and the image's box is cut out by
        the same `letterbox_box` that placed it: pixels come back to where they were, but for what resampling lost, and
        what the network said about the border alone never counts. Without `target_sizes` the border stays.

        Args:
            outputs: what the model returned, or its `logits` alone: (N, h, w), over the whole of pixel_values.
            target_sizes: N pairs (height, width), the size of each expression's image as it is displayed, turned as its
                EXIF orientation says; None for the logits' own.
            threshold: a pixel belongs to the object where its probability is above this, between 0 and 1.
            return_scores: False leaves the scores out, which saves their time.

        Returns:
            N dicts: "mask", a NumPy bool array (height, width); "score", a float, the mean probability inside the
            mask, 0.0 where it is empty; and "peak", (row, column) of the highest logit, whatever the threshold. For an
            image of more than 2**20 pixels, the score is the mean over every second, third, … row and column of a mask
            of more than 2**16 pixels, and the peak is the middle of the highest logit before interpolation.

        Raises:
            ValueError: the threshold is not between 0 and 1, the sizes are not one per expression, there are no logits,
                or one is NaN.
        """
        logits = outputs if isinstance(outputs, torch.Tensor) else getattr(outputs, "logits", None)
        if logits is None:
            raise ValueError(
                "Post-processing takes what the model returned, or its logits alone, but there came a "
                f"{type(outputs).__name__} without logits. After return_dict=False, they are the first entry that is "
                "(N, h, w)."
            )
        logits = logits.detach().float()
        check_post_processing(logits, target_sizes, threshold)
        if target_sizes is None:
            sizes = [tuple(logits.shape[1:])] * len(logits)
        else:
            sizes = [(int(height), int(width)) for height, width in target_sizes]
        answers = []
        while len(answers) < len(logits):  # those of one size together, as far as they fit into PIXELS_AT_ONCE
            start, (height, width) = len(answers), sizes[len(answers)]
            same = sum(1 for _ in takewhile((height, width).__eq__, sizes[start:]))
            part = logits[start : start + min(same, max(1, PIXELS_AT_ONCE // (height * width)))]
            if self.image_processor.do_letterbox and target_sizes is not None:
                side = letterbox_size(self.image_processor)
                part = torch.stack([inside_letterbox(logit, height, width, side) for logit in part])
            if height * width > PIXELS_AT_ONCE:
                answers.append(large_answer(part[0], height, width, threshold, return_scores))
                continue
            part = interpolate(part, height, width)
            probability = part.sigmoid()  # (n, height, width)
            masks = probability > threshold
            precise = torch.float32 if part.device.type == "mps" else torch.float64
            inside = (probability * masks).sum(dim=(1, 2), dtype=precise)
            scores = (inside / masks.sum(dim=(1, 2)).clamp(min=1)).float().tolist()
            peaks = part.flatten(1).argmax(dim=1).tolist()  # of the logits: probabilities saturate
            for mask, score, peak in zip(masks.cpu().numpy(), scores, peaks, strict=True):
                answers.append(
                    {"mask": mask, "peak": divmod(peak, width)} | ({"score": score} if return_scores else {})
                )
        return answers


def check_keywords(kwargs: dict, without_images: bool):
    """Refuse keywords that the processor does not know, and without images those that are for images only."""
    of_text, of_images = set(M3DecTextKwargs.__annotations__), set(M3DecImagesKwargs.__annotations__)
    groups = {"text_kwargs": of_text, "images_kwargs": of_images, "common_kwargs": of_text & of_images}
    unknown = set(kwargs) - of_text - of_images - set(groups)
    for group, names in groups.items():
        unknown |= {f"{group}[{name!r}]" for name in set(kwargs.get(group) or ()) - names}
    if unknown:
        raise TypeError(
            f"The processor does not know {', '.join(sorted(unknown))}. For text it takes "
            f"{', '.join(sorted(of_text))}, for images {', '.join(sorted(of_images - of_text))}."
        )
    useless = set(kwargs) & (of_images - of_text | {"images_kwargs"})
    if without_images and useless:
        raise TypeError(f"Without images there is nothing for {', '.join(useless)} to change. Leave it out.")


def pair_with_images(text, num_images: int | None) -> tuple[list[str], list[int]]:
    """All expressions in one list, and for each the number of its image. `num_images` is None without images."""
    groups = in_a_list(text)
    if not groups or not (isinstance(text, str) or holds_many(text, ndim_of_many=1)):
        raise ValueError(f"text must be an expression or a list of expressions, but it is {text!r}. Give at least one.")
    nested = all(holds_many(group, ndim_of_many=1) for group in groups)
    groups = [list(group) for group in groups] if nested else groups
    expressions = list(chain.from_iterable(groups)) if nested else groups
    for expression in expressions:
        if not isinstance(expression, str):
            raise ValueError(
                "text must hold strings only, or only lists of strings, but it holds "
                f"{expression!r} of type {type(expression).__name__}. Leave it out, with its image and mask."
            )
    if nested and not all(groups):
        raise ValueError("Every image needs an expression, but one list of expressions is empty. Leave that image out.")
    if num_images is None:
        num_images = len(groups)
    if len(groups) != num_images and (nested or num_images != 1):
        raise ValueError(
            f"Got {num_images} images and {len(groups)} {'lists of expressions' if nested else 'expressions'}. Give "
            "one expression per image, or a list of expressions for each image: "
            "text=[['the mug', 'the cup'], ['the cat']]."
        )
    if nested:
        return expressions, [i for i, group in enumerate(groups) for _ in group]
    return expressions, [0] * len(expressions) if num_images == 1 else list(range(num_images))


def masks_of_expressions(segmentation_maps, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """One uint8 mask (H_i, W_i) per expression, checked against `sizes`, those of the expressions' images."""
    maps = in_a_list(segmentation_maps, ndim_of_many=3)
    if maps and all(isinstance(group, list | tuple) for group in maps):
        maps = list(chain.from_iterable(maps))
    if len(maps) != len(sizes):
        raise ValueError(
            f"Got {len(sizes)} expressions and {len(maps)} segmentation maps. Give one mask per expression, the same "
            "one again where two expressions are about the same object."
        )
    masks = mask_arrays(maps)
    for n, (mask, size) in enumerate(zip(masks, sizes, strict=True)):
        if mask.shape != size:
            raise ValueError(
                f"A mask must have the size of its image as it is displayed (EXIF orientation applied), but "
                f"segmentation_maps[{n}] is (height, width) = {mask.shape} and its image {size}. Give the mask in the "
                "image's own frame."
            )
    return masks


def check_post_processing(logits: torch.Tensor, target_sizes, threshold: float):
    """Refuse what would give a mask that means nothing."""
    if not 0 < np.float32(threshold) < 1:  # so it is compared
        raise ValueError(f"threshold must be a probability between 0 and 1, but it is {threshold}. The default is 0.5.")
    if target_sizes is not None and (
        len(target_sizes) != len(logits)
        or any(np.ndim(size) != 1 or len(size) != 2 or min(size) < 1 for size in target_sizes)
    ):
        raise ValueError(
            f"target_sizes must be one (height, width) per expression, {len(logits)} of them, but it is "
            f"{target_sizes!r}. Repeat an image's size for each of its expressions."
        )
    if logits.isnan().any():
        raise ValueError(
            "Logits must be numbers, but some are NaN: the weights have diverged, or overflowed in half precision. "
            "Load other weights, or use bfloat16 or float32."
        )


def has_letter_or_sign(expression: str) -> bool:
    """Whether there is anything beside spaces, punctuation and control characters."""
    return any(unicodedata.category(character)[0] in "LNS" for character in expression)


def no_word_in(expression: str) -> ValueError:
    """The error for an expression that is empty, blank, or nothing but punctuation."""
    return ValueError(
        f"An expression must hold at least one word, but {expression[:80]!r} holds none. Name the object: 'red cup'."
    )
