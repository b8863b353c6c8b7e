"""The answers of an exported model, on onnxruntime. This file lies beside the graphs, and needs no torch there: only
`pip install onnxruntime tokenizers pillow numpy`.

    from onnx_segmenter import OnnxReferringSegmenter  # with the package: from m3dec.hub.runtimes.onnx_segmenter

    segmenter = OnnxReferringSegmenter("path/to/folder")
    segmenter("kitchen.jpg", text=["the red mug", "the left chair"])  # the image goes through the image half
    segmenter("kitchen.jpg", text="the window")  # the answer of the image half is remembered

Images are resized by Pillow, as by `M3DecImageProcessorPil`.
"""

import json
import os
import unicodedata
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageOps
from tokenizers import Tokenizer

GRAY = 128  # of 255, a letterbox's border
ROWS_AT_ONCE = 64  # of an image or a mask


class OnnxReferringSegmenter:
    """Find the object an expression refers to, as `ReferringImageSegmentationPipeline` does. Threads may share one.

    Args:
        folder: what `export_onnx` wrote.
        cache_size: for how many images the image half's answer is kept, the latest ones.
        threads: of onnxruntime; 0 lets it choose.
        providers: of onnxruntime, such as ("CUDAExecutionProvider",) with onnxruntime-gpu.

    Raises:
        FileNotFoundError: a file is missing in the folder.
    """

    def __init__(self, folder: str | Path, cache_size: int = 16, threads: int = 0, providers=("CPUExecutionProvider",)):
        folder = Path(folder)
        configs = ("processor_config.json", "tokenizer.json", "tokenizer_config.json")
        for name in ("image_half.onnx", "text_half.onnx", *configs):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"An exported model holds {name}, but {folder} has none. Export it again.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.image_half, self.text_half = (
            onnxruntime.InferenceSession(folder / f"{half}_half.onnx", options, providers=list(providers))
            for half in ("image", "text")
        )
        settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        self.max_words, self.image_settings = settings["max_words"], settings["image_processor"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_words)
        of_tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.tokenizer.encode_special_tokens = of_tokenizer.get("split_special_tokens", False)
        self.cache_size = cache_size
        self._features, self._lock = OrderedDict(), Lock()

    def __call__(self, image, text=None, threshold: float = 0.5) -> list[dict]:
        """Segment what `text` refers to in `image`.

        Args:
            image: a path, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). No URL is fetched.
            text: an expression, or a list of them. They are cut off after the model's `max_words`.
            threshold: a pixel belongs to the object where its probability is above this, between 0 and 1.

        Returns:
            A dict for each expression, in order: "label", the expression; "score", the mean probability inside the
            mask, 0.0 where it is empty; "mask", a PIL image of mode "L", 255 on the object and 0 elsewhere, of the
            image's own size as it is displayed.

        Raises:
            ValueError: the image cannot be read, an expression holds no word, or the threshold is no probability.
        """
        if not 0 < threshold < 1:
            raise ValueError(
                f"threshold must be a probability between 0 and 1, but it is {threshold}. The default is 0.5."
            )
        texts = [text] if isinstance(text, str) else text
        input_ids, attention_mask = self.tokens(texts)
        rgb = rgb_array(image)
        inputs = {
            "image_features": self.features(rgb),
            "image_index": np.zeros(len(texts), np.int64),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
        }
        (logits,) = self.text_half.run(None, inputs)  # (N, h, w)
        answers = []
        for label, logit in zip(texts, logits, strict=True):
            mask, score = self.mask_of(logit, rgb.shape[:2], threshold)
            answers.append(
                {"label": label, "score": score, "mask": Image.fromarray(mask.view(np.uint8) * np.uint8(255))}
            )
        return answers

    def features(self, rgb: np.ndarray) -> np.ndarray:
        """F_enc (1, P, C) float32 of uint8 (H, W, 3): from the image half, or remembered."""
        key = rgb.shape, sha256(np.ascontiguousarray(rgb)).digest()
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
                return self._features[key]
        (features,) = self.image_half.run(None, {"pixel_values": self.pixel_values(rgb)})
        with self._lock:
            self._features[key] = features
            while len(self._features) > self.cache_size:
                self._features.popitem(last=False)
        return features

    def pixel_values(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) stretched or letterboxed to S x S and normalized, (1, 3, S, S) float32."""
        settings = self.image_settings
        height, width = settings["size"]["height"], settings["size"]["width"]
        image, resample = Image.fromarray(rgb), Image.Resampling(settings["resample"])
        if settings.get("do_letterbox", False):
            top, left, new_height, new_width = letterbox_box(*rgb.shape[:2], (height, width))
            canvas = Image.new("RGB", (width, height), (GRAY, GRAY, GRAY))
            canvas.paste(image.resize((new_width, new_height), resample), (left, top))
        else:
            canvas = image.resize((width, height), resample)
        pixels = np.asarray(canvas, np.float32) * settings["rescale_factor"]
        pixels = (pixels - settings["image_mean"]) / settings["image_std"]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Expressions as `input_ids` and `attention_mask`, (N, T) int64 each, padded on the right."""
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"text must be an expression or a list of expressions, but it is {texts!r:.80}. Give at least one: "
                "segmenter(image, text='the red mug')."
            )
        encodings = []
        for text in texts:
            encoding = self.tokenizer.encode(text.encode("utf-8", "replace").decode())  # no lone surrogates
            signs = any(unicodedata.category(character)[0] in "LNS" for character in text)
            if not signs or all(encoding.special_tokens_mask):
                raise ValueError(
                    f"An expression must hold at least one word, but {text[:80]!r} holds none. Name the object: 'red "
                    "cup'."
                )
            encodings.append(encoding)
        input_ids = np.zeros((len(texts), max(map(len, encodings))), np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, encoding in enumerate(encodings):
            input_ids[row, : len(encoding)] = encoding.ids
            attention_mask[row, : len(encoding)] = 1
        return input_ids, attention_mask

    def mask_of(self, logit: np.ndarray, size: tuple[int, int], threshold: float) -> tuple[np.ndarray, float]:
        """Logits (h, w) as a bool mask of `size`, (height, width), with the mean probability inside of it."""
        if self.image_settings.get("do_letterbox", False):
            canvas = self.image_settings["size"]["height"], self.image_settings["size"]["width"]
            logit = inside_letterbox(logit, size, canvas)
        logit = resized(logit, (len(logit), size[1]))
        upper, lower, share = places(len(logit), size[0])
        mask, total = np.empty(size, bool), 0.0
        for top in range(0, size[0], ROWS_AT_ONCE):
            rows = slice(top, top + ROWS_AT_ONCE)
            part = logit[upper[rows]] * (1 - share[rows, None]) + logit[lower[rows]] * share[rows, None]
            mask[rows] = part > np.log(threshold / (1 - threshold))
            total += (1 / (1 + np.exp(-part[mask[rows]]))).sum(dtype=np.float64)  # of the sigmoid
        return mask, float(total / max(1, np.count_nonzero(mask)))


def rgb_array(image) -> np.ndarray:
    """An image as its upright RGB pixels, uint8 (H, W, 3): EXIF orientation applied, 16-bit gray scaled, transparent
    pixels over white."""
    if isinstance(image, np.ndarray):
        fits = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (1, 3, 4))
        if image.dtype != np.uint8 or not fits or 0 in image.shape:
            raise ValueError(
                "An image array must be uint8, (H, W) or (H, W, channels), with 1, 3 or 4 channels and at least one "
                f"pixel, but image is {image.dtype} of shape {image.shape}. Scale it to 0..255 and convert it to uint8."
            )
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise ValueError(
            f"An image must be a path, a PIL image or a uint8 array, but it is of type {type(image).__name__}. Encoded "
            "bytes are opened with PIL.Image.open(io.BytesIO(data)); a list is asked image by image."
        )
    try:
        if isinstance(image, Image.Image):
            return upright_rgb(image)
        with Image.open(image) as opened:
            return upright_rgb(opened)
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise ValueError(
            "An image must be one that Pillow can read whole and turn into RGB, but this one is not: "
            f"{type(error).__name__}: {error} Check that the file exists, is complete and is an image."
        ) from error


def upright_rgb(image: Image.Image) -> np.ndarray:
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert("RGB") would turn all above 255 white
        gray = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} does not say which values are black and white; scale it to 8 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):  # Pillow hands out a large image slowly
        bottom = min(top + ROWS_AT_ONCE, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def letterbox_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image lies on its letterbox of `size`: (top, left, new_height, new_width)."""
    canvas_height, canvas_width = size
    if height * canvas_width >= width * canvas_height:  # as high as the canvas
        new_height, new_width = canvas_height, max(1, round(width * canvas_height / height))
    else:
        new_height, new_width = max(1, round(height * canvas_width / width)), canvas_width
    return (canvas_height - new_height) // 2, (canvas_width - new_width) // 2, new_height, new_width


def inside_letterbox(logit: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The part of `logit` (h, w) that is about the image, at the scale the network saw it. Cells of nothing but border
    are replaced by the nearest that touch the image."""
    top, left, height, width = letterbox_box(*image_size, size)
    rows, columns = (
        np.arange(cells).clip(start * cells // side, ((start + length) * cells - 1) // side)
        for start, length, side, cells in zip((top, left), (height, width), size, logit.shape, strict=True)
    )
    return resized(logit[rows][:, columns], size)[top : top + height, left : left + width]


def resized(logit: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits (h, w) at another `size`, bilinearly, as torch's interpolate without align_corners."""
    for axis, length in enumerate(size):
        before, after, share = places(logit.shape[axis], length)
        share = share[:, None] if axis == 0 else share
        logit = logit.take(before, axis) * (1 - share) + logit.take(after, axis) * share
    return logit


def places(cells: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `length` pixels lie among `cells` of a side: the cells before and after each, and the latter's share."""
    place = ((np.arange(length) + 0.5) * (cells / length) - 0.5).clip(0, cells - 1)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, cells - 1), (place - before).astype(np.float32)
