import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.training import report
from m3dec.examples.training.report import (
    curves_figure,
    diagnostics_figure,
    draw_curves,
    draw_samples,
    read_metrics,
    running_mean,
)
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.drawing import contact_sheet
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import write_scenes

TRAINED = {"minutes": 1.0, "mask_loss": 0.2, "learning_rate": 1e-3, "images_per_second": 100.0}
KINDS = {kind: {"miou": 0.4, "count": 40} for kind in ("$\\frac$", "ordinal")}


def measured(step: int) -> dict:
    scores = {name: 0.5 + step / 100 for name in report.SCORES} | {"count": 80}
    peaks = {"peak_in_target": 0.6, "blind_chance": 0.2}
    return {"step": step, "minutes": 1.0, "loss": 0.3, "figures": {"all": scores, **KINDS}, **peaks}


def metrics_file(folder, lines: list[dict], rest: str = ""):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return folder / "metrics.jsonl"


def drawn_names(figure) -> list[set[str]]:
    """Of each panel the names in its legend, without the values behind them."""
    legends = [panel.get_legend() for panel in figure.axes]
    return [
        {text.get_text().rpartition(" ")[0] for text in legend.get_texts()} if legend else set() for legend in legends
    ]


def test_curves_have_six_panels_whose_curves_are_named_beside_them():
    lines = [{"step": step, "loss": 0.3, "reconstruction_loss": 0.01, **TRAINED} for step in (1, 2, 3)]
    figure = curves_figure([*lines, measured(2), measured(3)])
    figure.draw_without_rendering()  # what looks like a formula is none
    assert drawn_names(figure) == [
        {"sum", "mask", "LFR"},
        {"mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"},
        {"$\\frac$", "ordinal"},
        {"model", "blind"},
        {""},
        {"images"},
    ]
    assert figure.axes[0].get_yscale() == "log"
    np.testing.assert_allclose(figure.axes[1].lines[0].get_xydata(), [[2, 52], [3, 53]])  # steps, percent


def test_diagnostics_have_a_panel_each_with_a_curve_for_every_layer_or_part(tmp_path):
    diagnosed = {
        "imi_gate/1": -0.1,
        "imi_gate/2": 0.2,
        "silent/1": 0.5,
        "lfr_error/right": 1e-4,
        "lfr_error/shuffled": 0.1,
    }
    lines = [{"step": 1, "loss": 0.3, "gradient_norm/mask_decoder": 0.4, **TRAINED}, measured(2) | diagnosed]
    figure = diagnostics_figure(lines)
    figure.draw_without_rendering()
    names = [{"1", "2"}, {"1"}, {"right", "shuffled"}, {"mask_decoder"}]
    assert [names for names in drawn_names(figure) if names] == names
    gates = figure.axes[0].lines
    np.testing.assert_allclose([gate.get_xydata()[0] for gate in gates], [[2, -0.1], [2, 0.2]])
    assert figure.axes[0].get_ylim()[0] < -0.1  # nothing is cut off
    draw_curves(metrics_file(tmp_path, lines), tmp_path / "curves.png")
    assert (tmp_path / "diagnostics.png").stat().st_size > 1000


def test_names_of_curves_that_end_together_are_apart_and_inside_the_file(tmp_path):
    figure = curves_figure([measured(1), measured(49)])  # all at 99 percent
    figure.savefig(tmp_path / "curves.png")
    boxes = [text.get_window_extent() for text in figure.axes[1].get_legend().get_texts()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 7
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    following = figure.axes[2].get_window_extent()
    assert all(
        panel.get_legend().get_window_extent().x1 <= figure.bbox.x1 for panel in figure.axes if panel.get_legend()
    )
    assert max(box.x1 for box in boxes) < following.x0


def test_a_file_without_an_evaluation_or_with_a_line_half_written_still_draws(tmp_path):
    lines = [{"step": 20, "loss": 0.3, **TRAINED}]
    for rest in ("", '{"step": 40, "loss": 0.', '{"step": 40, "lo{"step": 60}\n', "4\n"):
        metrics = metrics_file(tmp_path, lines, rest)
        assert read_metrics(metrics) == lines
        draw_curves(metrics, tmp_path / "curves.png")
        assert Image.open(tmp_path / "curves.png").size == (1300, 700)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png", "diagnostics.png"}
    assert "nothing measured yet" in {text.get_text() for text in curves_figure(lines).axes[1].texts}


def test_an_empty_file_and_a_loss_of_zero_draw(tmp_path):
    for lines in ([], [{"step": 1, "loss": 0.0}], [{"step": 1, "loss": 0.1, "mask_loss": float("nan")}]):
        draw_curves(metrics_file(tmp_path, lines), tmp_path / "curves.png")
        assert Image.open(tmp_path / "curves.png").size == (1300, 700)
        (tmp_path / "curves.png").unlink()


def test_a_drawing_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    metrics = metrics_file(tmp_path, [measured(1)])
    draw_curves(metrics, tmp_path / "curves.png")
    before = (tmp_path / "curves.png").read_bytes()

    def half_a_file(figure, path, **settings):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(report.Figure, "savefig", half_a_file)
    with pytest.raises(OSError, match="full"):
        draw_curves(metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == before


def test_the_running_mean_looks_back_only():
    assert running_mean([1.0, 3.0, 8.0, 4.0], window=2) == [1.0, 2.0, 5.5, 6.0]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, split_sizes={"train": 1, "val": 3}, seed=5)
    return load_referring_dataset("refer", root=root, dataset="scenes", split_by="scenes")["val"]


@pytest.fixture(scope="module")
def trained():
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT)
    return model, M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)


@pytest.fixture
def sheets(monkeypatch) -> list:
    """The rows of each contact sheet that is drawn."""
    rows = []

    def recorded(cells, *settings, **more):
        rows.append(cells)
        return contact_sheet(cells, *settings, **more)

    monkeypatch.setattr(report, "contact_sheet", recorded)
    return rows


def test_samples_are_two_expressions_of_different_targets_for_each_of_the_first_images(
    scenes, trained, sheets, tmp_path
):
    draw_samples(*trained, scenes, tmp_path / "run" / "samples.png", images=2)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["samples.png"]
    Image.open(tmp_path / "run" / "samples.png").load()
    (rows,) = sheets
    images = list({row["image_id"]: row["image"] for row in scenes}.values())[:2]
    assert len(rows) == 4
    for number, (image, text, (_, caption), truth) in enumerate(rows):
        np.testing.assert_array_equal(image, images[number // 2])
        assert text in {sentence["sent"] for row in scenes for sentence in row["sentences"]}
        assert 0 <= float(caption.removeprefix("IoU ")) <= 1
        assert truth != rows[number ^ 1][3]  # its neighbour of the same image means another thing
    assert sum(float(row[2][1].removeprefix("IoU ")) for row in rows) > 2  # a model that knows scenes


def test_samples_leave_the_weights_of_the_model_alone_and_the_model_in_eval(scenes, trained, tmp_path):
    model, processor = trained
    model.train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw_samples(model, processor, scenes, tmp_path / "samples.png", images=1)
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_an_image_with_one_target_shows_two_expressions_of_it_and_those_without_words_are_not_asked(
    scenes, trained, sheets, tmp_path
):
    sentence = {"sent_id": 1, "raw": "", "sent": "", "category": None}
    texts = [[["the ring", "...", "the round thing"], "the ring the round thing"], [["?"], ""]]
    for places, expected in texts:
        row = {**scenes[0], "sentences": [{**sentence, "raw": text, "sent": text} for text in places]}
        table = scenes.select([0]).map(lambda _, row=row: {"sentences": row["sentences"]}, features=scenes.features)
        draw_samples(*trained, table, tmp_path / "samples.png")
        assert " ".join(cells[1] for cells in (sheets.pop() if sheets else [])) == expected
