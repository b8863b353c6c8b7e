"""Refusals of inputs that the model would answer with nonsense. The messages say the rule, what arrived and what to do.

Shapes are known on the host. Values are not: a look at them waits for the device, so each door looks once.
"""

import torch
from torch import Tensor

from .mask_loss import IGNORED

NORMALIZE = "Call M3DecProcessor(images=…, text=…), or M3DecImageProcessor, on the image."


def check_inputs(
    pixel_values: Tensor | None,
    image_features: Tensor | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    image_index: Tensor | None,
    hidden_size: int,
    max_words: int,
    vocab_size: int,
) -> None:
    """Refuse what `M3DecModel.forward` cannot answer. Its docstring has the shapes. Reads once from the device."""
    check_tensors(image_features=image_features, input_ids=input_ids, attention_mask=attention_mask)
    check_tensors(pixel_values=pixel_values, image_index=image_index)
    if image_features is None and pixel_values is None:
        raise ValueError(
            "The image is half of the input, but pixel_values and image_features are None. Give pixel_values, or "
            "image_features from get_image_features."
        )
    if image_features is not None and pixel_values is not None:
        raise ValueError("pixel_values and image_features were both given; they say the same. Leave one out.")
    if image_features is None:
        check_pixel_values(pixel_values)
    elif image_features.ndim != 3 or image_features.shape[-1] != hidden_size:
        raise ValueError(
            f"image_features must be (B, P, {hidden_size}), but they are {tuple(image_features.shape)}. Give what "
            "get_image_features returned."
        )
    word_mask = check_words(input_ids, attention_mask, max_words)
    num_expressions = input_ids.shape[0]
    num_images = (pixel_values if image_features is None else image_features).shape[0]
    if image_index is None and num_images not in (1, num_expressions):
        raise ValueError(
            f"Got {num_images} images and {num_expressions} expressions. Give image_index, (N,) int64: the image each "
            "expression is about."
        )
    whole = (torch.int64, torch.int32)
    if image_index is not None and (image_index.shape != (num_expressions,) or image_index.dtype not in whole):
        raise ValueError(
            f"image_index must hold one whole number for each of the {num_expressions} expressions, but it is "
            f"{tuple(image_index.shape)} of {image_index.dtype}. Give the row of pixel_values that each is about."
        )
    check_values(pixel_values, input_ids, word_mask, image_index, num_images, vocab_size)


def check_words(input_ids: Tensor | None, attention_mask: Tensor | None, max_words: int) -> Tensor:
    """Refuse words that are not (N, T) of whole numbers. Returns `real_words`."""
    if input_ids is None:
        raise ValueError("The expression is half of the input, but input_ids is None. M3DecProcessor makes it.")
    if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids must be (N, T) whole numbers, at least one expression of one word, but they are "
            f"{tuple(input_ids.shape)} of {input_ids.dtype}. M3DecProcessor makes them."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, but it has "
            f"{tuple(attention_mask.shape)}. Give both as one call of the tokenizer made them."
        )
    num_words = input_ids.shape[1]
    if num_words > max_words:
        raise ValueError(
            f"This model reads at most max_words = {max_words} words, but input_ids has {num_words}. Truncate the "
            "expressions, as M3DecProcessor does."
        )
    return real_words(input_ids, attention_mask)


def check_values(
    pixel_values: Tensor | None,
    input_ids: Tensor,
    word_mask: Tensor,
    image_index: Tensor | None,
    num_images: int,
    vocab_size: int,
) -> None:
    """Refuse numbers out of range and padding that is not on the right. One read from the device if all is well.

    Nothing is read while a model is compiled or exported.
    """
    if torch.compiler.is_compiling():
        return
    wrong_ids = ((input_ids < 0) | (input_ids >= vocab_size)).any()
    empty = ~word_mask.any(dim=1)
    word_after_padding = (word_mask[:, 1:] & ~word_mask[:, :-1]).any()
    wrong_index = torch.zeros_like(wrong_ids)
    if image_index is not None:
        wrong_index = ((image_index < 0) | (image_index >= num_images)).any().to(input_ids.device)
    not_normalized = torch.zeros_like(wrong_ids)
    if pixel_values is not None:  # normalized images reach below 0, and hardly above 3
        not_normalized = ((pixel_values.amin() >= 0) & (pixel_values.amax() > 20)).to(input_ids.device)
    if not torch.stack([wrong_ids, empty.any(), word_after_padding, wrong_index, not_normalized]).any():
        return
    if not_normalized:
        raise ValueError(
            f"pixel_values must be normalized, but they reach from {pixel_values.min().item():g} to "
            f"{pixel_values.max().item():g}, as raw pixels do. {NORMALIZE}"
        )
    if wrong_ids:
        raise ValueError(
            f"input_ids must be 0 to {vocab_size - 1}, the rows of this model's vocabulary, but they reach from "
            f"{input_ids.min().item()} to {input_ids.max().item()}. Use the processor saved with this model."
        )
    if empty.any():
        raise ValueError(
            "Each expression needs at least one word, but attention_mask is all 0 in the rows "
            f"{empty.nonzero().flatten().tolist()}. Leave those expressions out."
        )
    if word_after_padding:
        raise ValueError(
            "Expressions must be padded on the right, but attention_mask has a 1 after a 0. Set the tokenizer's "
            "padding_side to 'right'."
        )
    raise ValueError(
        f"image_index must be 0 to {num_images - 1}, for there are {num_images} images, but it reaches from "
        f"{image_index.min().item()} to {image_index.max().item()}. Give the image's row in pixel_values."
    )


def real_words(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(N, T) bool, False on padding."""
    return torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()


def check_tensors(**inputs: Tensor | None) -> None:
    """Refuse what is no tensor, such as lists, arrays, or the processor's whole answer in the place of the first."""
    for name, given in inputs.items():
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(
                f"{name} must be a tensor, but it is of type {type(given).__name__}. Call the processor with "
                "return_tensors='pt', its default, and model(**inputs)."
            )


def check_pixel_values(pixel_values: Tensor) -> None:
    """Refuse images that are not (B, 3, S, S) of floats with S a multiple of 32."""
    check_tensors(pixel_values=pixel_values)
    height, width = pixel_values.shape[-2:]
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or height != width or height % 32 or height == 0:
        raise ValueError(
            "pixel_values must be (B, 3, S, S), square with a side S that is a multiple of 32, but they are "
            f"{tuple(pixel_values.shape)}. M3DecImageProcessor makes such squares; its size says which."
        )
    if pixel_values.shape[0] == 0:  # len() would be fixed by an export
        raise ValueError(
            f"At least one image is needed, but pixel_values are {tuple(pixel_values.shape)}. Leave an empty batch "
            "out. What cuts a batch in pieces by its rows, as accelerate's dispatch_batches does, needs one image for "
            "each expression."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values must be normalized floats, but they are {pixel_values.dtype}. {NORMALIZE}")


def check_labels(labels: Tensor | None, input_ids: Tensor | None) -> None:
    """Refuse labels that are not a mask (H, W) of 0, 1 and `IGNORED` for each expression. One read from the device."""
    check_tensors(labels=labels, input_ids=input_ids)
    if labels is None or input_ids is None or input_ids.ndim != 2:
        return  # `check_inputs` refuses such words
    num_expressions = input_ids.shape[0]
    if labels.ndim != 3 or labels.shape[0] != num_expressions:
        raise ValueError(
            f"labels must be (N, H, W) with one mask for each of the {num_expressions} expressions, but they are "
            f"{tuple(labels.shape)}. Give an image's masks once for each of its expressions."
        )
    if not torch.compiler.is_compiling():
        known = (labels == 0) | (labels == 1)
        if labels.dtype.is_signed:  # in uint8 torch takes 156 for -100
            known |= labels == IGNORED
        if not known.all():
            raise ValueError(
                f"labels are 1 on the object, 0 elsewhere and {IGNORED} where no loss is to count, but there are "
                f"{(~known).sum().item()} others, such as {labels[~known][0].item():g} of {labels.dtype}. Say which "
                f"pixels are the object, by labels = (mask > 0).float() or the like, and set ignored ones to {IGNORED}."
            )
