import dataclasses
import functools
import math
import re

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard

from m3dec.examples.training.recipe import RECIPES, parse_recipe
from m3dec.hub.outward.model_card import as_text, license_of, write_model_card

PRECISIONS = {"pr@0.5": 0.875, "pr@0.6": 0.8, "pr@0.7": 0.7, "pr@0.8": 0.5, "pr@0.9": 0.123456}
FIGURES = {
    "all": {"oiou": 0.791234, "miou": 0.81, **PRECISIONS, "count": 1600},
    "nearest": {"oiou": 0.5, "miou": 0.5581, **PRECISIONS, "count": 800},
    "ordinal": {"oiou": 0.7, "miou": 0.77, **PRECISIONS, "count": 800},
}
COUNTS = {
    "train": {"images": 16, "references": 31, "sentences": 53},
    "val": {"images": 300, "references": 700, "sentences": 1800},
}
HOSTILE = "a {{ 7 * 7 }} | **b** `c` ``` <script>d</script>\n---\n# [e](https://example.org) $f$ \u202eg"


def recipe(name: str = "scenes.yaml", **fields) -> dict:
    return {**dataclasses.asdict(parse_recipe([str(RECIPES / name)])), **fields}


def card_of(folder, recipe: dict, data: str = "scenes (scenes)", figures: dict = FIGURES, **more) -> ModelCard:
    settings = {"counts": COUNTS, "device": "CPU", "num_processes": 2, "minutes": 12.4, **more}
    write_model_card(folder, recipe, figures, data, 3422, **settings)
    assert [path.name for path in folder.iterdir()] == ["README.md"]  # no temporary file
    return ModelCard.load(folder / "README.md")


def test_the_metadata_read_back_by_the_hubs_own_library_hold_the_same_figures(tmp_path):
    data = card_of(tmp_path, recipe()).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "image-segmentation")
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    names = {"oIoU": "oiou", "mIoU": "miou"} | {f"precision@0.{n}": f"pr@0.{n}" for n in range(5, 10)}
    assert found == {name: round(100 * FIGURES["all"][key], 2) for name, key in names.items()}
    assert {(result.dataset_name, result.dataset_split) for result in data.eval_results} == {("scenes (scenes)", "val")}
    assert "model-index" in data.to_dict()


def test_the_table_holds_every_kind_with_the_images_and_the_threshold_that_were_measured(tmp_path):
    text = card_of(tmp_path, recipe(), threshold=0.35).text
    assert "| all | 79.12 | 81.00 | 87.50 | 80.00 | 70.00 | 50.00 | 12.35 | 1600 |" in text
    assert "| nearest | 50.00 | 55.81 |" in text and "nearest (mIoU 55.81) is its weakest" in text
    assert "On the first 100 images of the split val of scenes (scenes), percent:" in text
    assert "probability is above 0.35" in text
    text = card_of(tmp_path, recipe(eval_images=300)).text  # all of the split
    assert "On the split val of scenes (scenes), percent:" in text


def test_every_placeholder_of_the_template_is_filled(tmp_path, monkeypatch):
    strict = functools.partial(jinja2.Template, undefined=jinja2.StrictUndefined)
    monkeypatch.setattr(jinja2, "Template", strict)  # raises where a name is not given
    text = card_of(tmp_path, recipe()).content
    assert "{{" not in text and "{%" not in text and "None" not in text


def test_the_recipe_in_the_card_reads_back_as_the_same(tmp_path):
    ours = recipe(data_root=HOSTILE, mix=[{"dataset": "refcoco+"}])
    fence, text = re.search(r"^(`+)yaml\n(.*?)\n\1$", card_of(tmp_path, ours).text, re.DOTALL | re.MULTILINE).groups()
    assert len(fence) == 4  # the recipe holds three backticks itself
    assert yaml.safe_load(text) == ours


def test_names_that_look_like_a_template_or_markup_stay_text(tmp_path):
    figures = {**FIGURES, HOSTILE: FIGURES["ordinal"]}
    card = card_of(tmp_path, recipe(eval_split=HOSTILE), data=HOSTILE, figures=figures, device=HOSTILE)
    assert card.data.eval_results[0].dataset_name.startswith("a {{ 7 * 7 }} | **b** `c`")
    assert len(card.data.eval_results) == 7
    prose = card.text.split("## Recipe")[0] + card.text.split("## Environment")[1]
    assert "49" not in prose and "\u202e" not in prose
    for markup in ("<script>", "**b**", "`c`", "[e](", "$f$", "https://example.org"):
        assert markup not in prose.replace("\\" + markup[0], "")
    rows = [line for line in prose.splitlines() if line.startswith("| a {{")]
    assert rows and all(row.replace("\\|", "").count("|") == 10 for row in rows)


def test_text_is_escaped_letter_by_letter():
    assert as_text("a|b\n<i> _x_") == r"a\|b \<i\> \_x\_"


def prose_of(folder, ours: dict, **more) -> str:
    """The card as one line, as Markdown joins its lines."""
    return " ".join(card_of(folder, ours, **more).text.split())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("darknet53.c2ns_in1k", "trained on ImageNet-1k alone and not on COCO's images"),
        ("weights/yolov3.weights", "**The backbone started from yolov3.weights.** YOLOv3's weights were trained on"),
        ("weights/darknet53.conv.74", "The public file of this name was trained on ImageNet alone"),
        ("somebody/backbone", "What that was trained on is not known here"),
        (None, "The backbone started from random numbers"),
    ],
)
def test_the_card_says_what_the_backbone_saw_before(weights, said, tmp_path):
    prose = prose_of(tmp_path, recipe("refcoco_darknet53.yaml", backbone_weights=weights))
    assert said in prose
    assert ("Figures on these splits come out too high" in prose) == ("weights/" in str(weights))


def test_a_training_that_went_on_points_to_what_the_model_before_had_seen(tmp_path):
    assert "What that model had seen counts too" in prose_of(tmp_path, recipe("scenes_160.yaml"))


def test_googles_refcocog_is_said_to_share_images(tmp_path):
    said = "The splits of RefCOCOg by Google share images"
    assert said in prose_of(tmp_path, recipe("refcocog_google_darknet53.yaml"))
    assert said not in prose_of(tmp_path, recipe("refcocog_umd_darknet53.yaml"))


def test_the_licence_is_apache_for_drawn_scenes_unknown_for_other_data_and_otherwise_as_given(tmp_path):
    for ours, given, license, said in (
        (recipe(), None, "apache-2.0", "So are these weights: their data were drawn by it"),
        (recipe("refcoco_darknet53.yaml"), None, "unknown", "The licence of these weights is not stated"),
        (recipe(backbone_weights="somebody/backbone"), None, "unknown", "The licence of these weights is not stated"),
        (recipe("refcoco_darknet53.yaml"), "cc-by-nc-4.0", "cc-by-nc-4.0", "These weights are under cc-by-nc-4.0"),
    ):
        assert license_of(ours, given) == license
        assert f"The code of m3dec is under Apache-2.0. {said}" in prose_of(tmp_path, ours, license=given)


def test_scores_of_expressions_that_may_mean_nothing_stand_beside_the_others_and_no_score_is_a_dash(tmp_path):
    figures = {"all": {**FIGURES["all"], "n_acc": 0.25, "t_acc": math.nan}, "ordinal": FIGURES["ordinal"]}
    card = card_of(tmp_path, recipe(), figures=figures)
    assert {"N-acc": 25.0}.items() <= {
        result.metric_type: result.metric_value for result in card.data.eval_results
    }.items()
    assert "T-acc" not in {result.metric_type for result in card.data.eval_results}
    assert "| 25.00 | – | 1600 |" in card.text and "how often it then answers nothing" in card.text
