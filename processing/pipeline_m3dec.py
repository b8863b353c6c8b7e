"""From an image and an expression to a mask in one call: `pipeline("referring-image-segmentation", model=…)`."""

import os

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines import Pipeline

from .images import holds_many, in_a_list, rgb_array_and_size
from .masks import mask_image, run_lengths
from .processing_m3dec import pair_with_images
from .segmenter import Segmenter

# What `save_pretrained(push_to_hub=True)` takes for the Hub.
PUSH_SETTINGS = ("repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description", "tags")

MASK_FORMATS = {"image": mask_image, "array": lambda mask: mask, "rle": run_lengths}


class ReferringImageSegmentationPipeline(Pipeline):
    """Find the object an expression refers to. Each image is encoded once, however many expressions are about it.

    ```python
    pipe = pipeline("referring-image-segmentation", model="path/to/model")
    pipe("kitchen.jpg", text="the red mug")  # [{"label": "the red mug", "score": 0.9, "mask": <PIL image>}]
    pipe("kitchen.jpg", text=["the red mug", "the left chair"])  # two entries
    pipe(["a.jpg", "b.jpg"], text="the cat")  # a list of one entry for each image
    pipe(({"image": path, "text": "the cat"} for path in paths), batch_size=8)  # streams
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    @property
    def segmenter(self) -> Segmenter:
        """Of the model and the processor as they are now: `pipe.model = torch.compile(pipe.model)` may replace one."""
        return Segmenter(self.model, self.processor)

    def __call__(self, image, text=None, **kwargs):
        """Segment what `text` refers to in `image`.

        Args:
            image: an image of a kind that `rgb_array` takes; several, in a list, tuple, column, Series or array; or,
                without `text`, a dict {"image", "text"}, or a list, tuple, generator or dataset of such dicts.
            text: an expression, or a list of them, about one image. For several images: one expression for all, one for
                each, or a list of expressions for each. Lists may come as for images.
            threshold (float, 0.5): a pixel belongs to the object where its probability is above this.
            timeout (float, 60): the longest wait for the next bytes of an image's URL, in seconds.
            mask_format ("image"): what "mask" is: "image", a PIL image of mode "L", 255 on the object and 0 elsewhere;
                "array", a bool array (height, width); "rle", COCO's {"size": [height, width], "counts": str}.
            return_scores (bool, True): False leaves "score" out, which saves its time.
            fast_decode (bool, False): True decodes a large JPEG at a part of its size: faster, and the masks of large
                photographs may differ a little at their edges.
            batch_size (int, 1): how many images go through the model at once.

        Returns:
            For one image a list with an entry per expression, in order: "label", the expression; "score", the mean
            probability inside the mask, 0.0 where it is empty, see `M3DecProcessor.post_process_referring_segmentation`
            for large images; "mask", of the image's own size as it is displayed. For a list of images, a list of these;
            for a generator or dataset, an iterator over these.

        Raises:
            ValueError: an image cannot be read, an expression holds no word, images and text do not fit together, or
                mask_format is another word, or the model is in training mode.
        """
        if text is not None:
            inputs = items(image, text)
        elif isinstance(image, dict | list | tuple | Dataset):
            inputs = list(image) if isinstance(image, tuple) else image
        elif not holds_many(image, ndim_of_many=4):
            raise ValueError(
                f"An expression is needed to know what to look for, but text is None for an image of type "
                f"{type(image).__name__}. Call pipe(image, text='the red mug')."
            )
        else:
            inputs = (item for item in image)  # any iterable, such as a dataset of 🤗 Datasets
        return [] if isinstance(inputs, list) and not inputs else super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self, threshold=None, timeout=None, mask_format=None, return_scores=None, fast_decode=None
    ):
        if mask_format is not None and mask_format not in MASK_FORMATS:
            raise ValueError(
                f"mask_format must be 'image', 'array' or 'rle', but it is {mask_format!r}. The default is 'image'."
            )
        of_preprocess = {"timeout": timeout, "fast_decode": fast_decode}
        of_postprocess = {"threshold": threshold, "mask_format": mask_format, "return_scores": return_scores}
        steps = of_preprocess, {}, of_postprocess
        return tuple({name: value for name, value in given.items() if value is not None} for given in steps)

    def preprocess(self, item, timeout=None, fast_decode=False) -> dict:
        if not isinstance(item, dict) or "image" not in item or item.get("text") is None:
            arrived = f"the keys {sorted(item)}" if isinstance(item, dict) else f"an item of type {type(item).__name__}"
            raise ValueError(
                f"Every item must be a dict with 'image' and 'text', but there came {arrived}. Give {{'image': …, "
                "'text': …}, or pass text= beside the images."
            )
        side = self.processor.image_processor.size
        at_least = (2 * side["width"], 2 * side["height"]) if fast_decode else None  # twice, or resizing would alias
        image, size = rgb_array_and_size(item["image"], timeout=timeout, at_least=at_least)
        texts, _ = pair_with_images(item["text"], num_images=1)
        inputs = self.processor(images=image, text=texts)
        # Batching joins one-dimensional tensors end to end, so images with different numbers of expressions fit.
        return {
            "pixel_values": inputs["pixel_values"],  # (1, 3, S, S)
            "input_ids": inputs["input_ids"][inputs["attention_mask"].bool()],  # of all expressions, without padding
            "num_words": inputs["attention_mask"].sum(dim=1),  # of each expression
            "num_expressions": torch.tensor([len(texts)]),
            "texts": tuple(texts),
            "size": size,
        }

    def _forward(self, inputs) -> dict:
        segmenter = self.segmenter
        num_words, num_expressions = inputs["num_words"].tolist(), inputs["num_expressions"].tolist()
        rows = inputs["input_ids"].split(num_words)
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        image_index = [number for number, count in enumerate(num_expressions) for _ in range(count)]
        pixel_values = inputs["pixel_values"].to(self.model.dtype)
        features = self.model.get_image_features(pixel_values, return_dict=True).last_hidden_state
        logits = segmenter.logits(features, input_ids, attention_mask, image_index)
        return {"logits": list(logits.split(num_expressions)), "texts": inputs["texts"], "size": inputs["size"]}

    def postprocess(self, outputs, threshold=0.5, mask_format="image", return_scores=True) -> list[dict]:
        logits = outputs["logits"][0]  # a list of one, or what batching made of it: (1, N_i, h, w)
        found = self.segmenter.answers(logits, [outputs["size"]] * len(logits), threshold, return_scores)
        answers = []
        for text, answer in zip(outputs["texts"], found, strict=True):
            score = {"score": answer["score"]} if return_scores else {}
            mask = MASK_FORMATS[mask_format](answer.pop("mask"))  # popped, so that it is freed before the next is made
            answers.append({"label": text, **score, "mask": mask})
        return answers

    def save_pretrained(self, save_directory, **kwargs):
        """Save the model and the processor, which the base class would leave out, with the code that came with them.

        Args:
            save_directory: a folder, made where it is not there.
            kwargs: of the model's `save_pretrained`; with `push_to_hub=True` those of `push_to_hub`, too.
        """
        to_hub = kwargs.pop("push_to_hub", False)
        settings = {name: kwargs.pop(name) for name in PUSH_SETTINGS if name in kwargs}
        if self.model._auto_class is not None:  # the model was loaded with its code, so it saves that too
            os.makedirs(save_directory, exist_ok=True)
            custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if to_hub:
            self.push_to_hub(settings.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **settings)


def items(image, text):
    """Images and text given apart, as {"image", "text"}: one for one image, a list for several, else a generator."""
    if not holds_many(image, ndim_of_many=4):
        return {"image": image, "text": text}
    is_stream = isinstance(image, Dataset) or not hasattr(image, "__len__")
    if isinstance(image, Dataset) and hasattr(image, "__len__"):
        image = map(image.__getitem__, range(len(image)))  # by itself it would go on until an IndexError
    if isinstance(text, str):
        shared = ({"image": one, "text": text} for one in image)
        return shared if is_stream else list(shared)
    images, texts = list(image), in_a_list(text)
    if len(texts) != len(images):
        raise ValueError(
            f"Got {len(images)} images and {len(texts)} entries of text. Give one expression for all images, one for "
            "each, or a list of expressions for each: text=[['the mug', 'the cup'], ['the cat']]."
        )
    return [{"image": one, "text": about} for one, about in zip(images, texts, strict=True)]
