"""Answers requests of Hugging Face Inference Endpoints, which look for this file in a pushed folder.

    {"inputs": {"image": "<base64 of a JPEG or PNG file>", "text": ["the red mug", "the left chair"]},
     "parameters": {"threshold": 0.5, "mask_format": "png"}}

The endpoint turns what is raised here into a reply {"error": …} with status 400. Nothing is fetched from anywhere.
"""

import base64
import binascii
from io import BytesIO

import torch
from PIL import Image
from transformers import pipeline

MAX_BYTES = 16 * 2**20  # of an image's file
MAX_PIXELS = 40_000_000  # of an image; masks have as many
MAX_MASK_PIXELS = 200_000_000  # of all masks of a reply
MAX_EXPRESSIONS = 64
MAX_CHARACTERS = 1000  # of an expression
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO")  # others run programs or decoders that few maintain


class EndpointHandler:
    """Loads the model of a folder once, and answers one request at a time.

    Args:
        path: the folder, with weights, processor and code.
    """

    def __init__(self, path: str = ""):
        self.pipe = pipeline(
            "referring-image-segmentation",
            model=str(path),
            device=0 if torch.cuda.is_available() else -1,
            trust_remote_code=True,
        )

    def __call__(self, data: dict) -> list[dict]:
        """Segment what each expression refers to.

        Args:
            data: {"inputs": {"image", "text"}, "parameters": {…}}. image: an image file in base64, as a string, with or
                without "data:image/png;base64," before it. text: an expression, or a list of up to 64. parameters, all
                optional: "threshold", 0.5, a probability between 0 and 1; "mask_format", "png" or "rle".

        Returns:
            A dict for each expression, in order: "label", the expression; "score", the mean probability inside the
            mask, 0.0 where it is empty; "mask", of the image's own size as it is displayed: a PNG in base64, white on
            the object and black elsewhere, or COCO's {"size": [height, width], "counts": compressed run lengths}.

        Raises:
            ValueError: the request is not of this form, or too large, or the image cannot be read.
        """
        inputs = data.get("inputs") if isinstance(data, dict) else None
        if not isinstance(inputs, dict) or not {"image", "text"} <= set(inputs):
            raise ValueError(
                'A request is {"inputs": {"image": base64, "text": "the red mug"}}, but inputs '
                f"{f'has the keys {sorted(map(str, inputs))}' if isinstance(inputs, dict) else 'is no object'}. Send "
                "both image and text."
            )
        threshold, mask_format = read_parameters(data.get("parameters") or {})
        texts = read_texts(inputs["text"])
        image = read_image(inputs["image"], len(texts))
        answers = self.pipe(
            image, text=texts, threshold=threshold, mask_format="rle" if mask_format == "rle" else "image"
        )
        return answers if mask_format == "rle" else [answer | {"mask": png(answer["mask"])} for answer in answers]


def read_parameters(parameters: dict) -> tuple[float, str]:
    unknown = sorted(map(str, set(parameters) - {"threshold", "mask_format"})) if isinstance(parameters, dict) else [""]
    if unknown:
        raise ValueError(
            f"parameters is an object with threshold and mask_format, but it is {parameters!r:.80}. Leave others out."
        )
    threshold, mask_format = parameters.get("threshold", 0.5), parameters.get("mask_format", "png")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ValueError(f"threshold must be a probability between 0 and 1, but it is {threshold!r:.80}.")
    if mask_format not in ("png", "rle"):
        raise ValueError(f"mask_format must be 'png' or 'rle', but it is {mask_format!r:.80}.")
    return threshold, mask_format


def read_texts(text) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"text must be an expression or a list of expressions, but it is {text!r:.80}.")
    if not 1 <= len(texts) <= MAX_EXPRESSIONS or max(map(len, texts)) > MAX_CHARACTERS:
        raise ValueError(
            f"A request holds 1 to {MAX_EXPRESSIONS} expressions of at most {MAX_CHARACTERS} characters, but here are "
            f"{len(texts)}, the longest of {max(map(len, texts), default=0)}. Send more requests, or shorter ones."
        )
    return texts


def read_image(encoded, num_masks: int) -> Image.Image:
    """The image of a base64 string, opened; its size is checked before it is decoded."""
    if not isinstance(encoded, str):
        raise ValueError(
            f"image must be an image file in base64, as a string, but it is of type {type(encoded).__name__}. No path "
            "and no URL is read."
        )
    if len(encoded) > MAX_BYTES * 4 / 3 + 100:
        raise ValueError(f"An image may have at most {MAX_BYTES:,} bytes, but this one has more. Send it smaller.")
    try:
        file = base64.b64decode(encoded.rpartition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:  # the latter for what is not ASCII
        raise ValueError(
            f"image must be an image file in base64, but it starts with {encoded[:40]!r} and is not: {error}. No path "
            "and no URL is read."
        ) from error
    try:
        image = Image.open(BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"An image may have at most {MAX_PIXELS:,} pixels, but this one claims more: {error}"
        ) from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise ValueError(
            f"An image must be a whole file of one of {', '.join(FORMATS)}, but this one is not: it starts with the "
            f"bytes {file[:8].hex(' ')}."
        ) from error
    pixels = image.width * image.height
    if pixels > MAX_PIXELS or pixels * num_masks > MAX_MASK_PIXELS:
        raise ValueError(
            f"An image may have at most {MAX_PIXELS:,} pixels, and all masks of a reply {MAX_MASK_PIXELS:,}, but "
            f"{num_masks} of {image.width} x {image.height} were asked for. Send it smaller, or with fewer expressions."
        )
    return image


def png(mask: Image.Image) -> str:
    file = BytesIO()
    mask.convert("1").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
