"""The scores as a module of `evaluate`: from a path, offline, without this package, and the blocks of its card."""

import os
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from m3dec.processing.referring_iou import ReferringIoU, bootstrap_intervals
from m3dec.processing.referring_iou.referring_iou import ReferringIouMetric, _decode_rle

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "processing" / "referring_iou"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def rle(mask, counts=None, size=None):
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": size or list(runs["size"]), "counts": runs["counts"].decode() if counts is None else counts}


def random_masks(seed=0, sizes=((5, 7), (13, 2), (3, 11), (1, 1))):
    random = np.random.default_rng(seed)
    return [random.random(size) < 0.4 for size in sizes], [random.random(size) < 0.6 for size in sizes]


def scores_of(predictions, targets):
    score = ReferringIoU()
    score.update(predictions, targets)
    return score.compute()


@pytest.fixture
def metric(tmp_path):
    return ReferringIouMetric(cache_dir=str(tmp_path))


WITHOUT_M3DEC = f"""
import sys
sys.modules["m3dec"] = None  # what `import m3dec` finds where it is not installed
import evaluate

for path in ({str(FOLDER)!r}, {str(FOLDER / "referring_iou.py")!r}):
    metric = evaluate.load(path)
    scores = metric.compute(
        predictions=[[[1, 1, 0], [0, 0, 0]]], references=[[[1, 0, 0], [1, 0, 0]]], image_ids=["a"], confidence=0.5
    )
    assert scores["miou"] == 1 / 3 and scores["intervals"]["miou"] == (1 / 3, 1 / 3), scores
assert not any(name.startswith("m3dec.") for name in sys.modules)
assert {str(FOLDER)!r} not in sys.modules[type(metric).__module__].__file__
print(metric.name, sorted(scores))
"""


def test_evaluate_loads_the_folder_offline_from_elsewhere_without_this_package(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-I", "-c", WITHOUT_M3DEC]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["count", "intervals", "miou", "oiou", "pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9"]
    assert done.stdout.splitlines()[-1] == f"referring_iou_metric {names}"


def test_the_blocks_of_the_card_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", CARD, re.MULTILINE | re.DOTALL)
    assert len(blocks) == CARD.count("```") // 2 == 6
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # evaluate appends its modules' folder
    for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE"):
        monkeypatch.setattr(evaluate.config, name, tmp_path / name)
    exec(compile("\n".join(blocks), str(FOLDER / "README.md"), "exec"), {"__name__": "__main__"})


def test_the_card_says_what_a_metric_of_the_hub_says():
    front = yaml.safe_load(CARD.split("---\n")[1])
    assert front["tags"] == ["evaluate", "metric"]
    assert {"title", "colorFrom", "colorTo", "sdk", "description"} <= set(front)


def test_rle_arrays_lists_and_pairs_have_the_scores_of_the_masks(metric):
    predictions, targets = random_masks()
    scores = scores_of(predictions, targets)
    pairs = [[int((p & t).sum()), int((p | t).sum())] for p, t in zip(predictions, targets, strict=True)]
    assert metric.compute(predictions=[rle(p) for p in predictions], references=[rle(t) for t in targets]) == scores
    assert metric.compute(predictions=predictions, references=[t.astype(int).tolist() for t in targets]) == scores
    assert metric.compute(predictions=pairs) == scores
    assert metric.compute(predictions=np.array(pairs, np.uint16)) == scores
    as_bytes = coco_mask.encode(np.asfortranarray(predictions[0], dtype=np.uint8))
    one = metric.compute(predictions=[as_bytes], references=[rle(targets[0])])
    assert one == scores_of(predictions[:1], targets[:1])


def test_adding_in_pieces_equals_one_call(metric):
    predictions, targets = random_masks()
    metric.add_batch(predictions=predictions[:1], references=targets[:1])
    metric.add_batch(predictions=[], references=[])
    metric.add(prediction=rle(predictions[1]), reference=rle(targets[1]))
    metric.add_batch(predictions=predictions[2:], references=targets[2:])
    assert metric.compute() == scores_of(predictions, targets)
    metric.add(prediction=[1, 2])
    assert metric.compute()["oiou"] == 0.5


def test_generalised_scores_come_with_masks_and_not_with_a_pair_among_them(metric):
    empty, full = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    scores = metric.compute(predictions=[empty, full, full], references=[empty, empty, full])
    assert scores == scores_of([empty, full, full], [empty, empty, full])
    assert (scores["n_acc"], scores["t_acc"]) == (0.5, 1.0)
    metric.add(prediction=empty, reference=empty)
    metric.add(prediction=[0, 0])
    assert "giou" not in metric.compute()


def test_intervals_are_those_of_the_bootstrap_over_images(metric):
    pairs, ids = [[1, 2], [2, 2], [0, 5], [4, 5]], ["a", "b", "a", "c"]
    scores = metric.compute(predictions=pairs, image_ids=ids, confidence=0.8)
    assert scores.pop("intervals") == bootstrap_intervals(pairs, ids, confidence=0.8)
    assert scores == metric.compute(predictions=pairs)


def test_scores_of_nothing_have_the_count_0(metric):
    assert metric.compute(predictions=[], references=[])["count"] == 0


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_rle_of_any_mask_is_that_mask(height, width, seed):
    random = np.random.default_rng(seed)
    mask = random.random((height, width)) < random.random()
    np.testing.assert_array_equal(_decode_rle(rle(mask)), mask)


def test_rle_of_large_masks_with_long_and_short_runs_is_that_mask():
    random = np.random.default_rng(0)
    masks = [np.zeros((1200, 901)), np.ones((1200, 901)), random.random((640, 480)) < 0.5]
    masks += [np.kron(random.random((5, 7)) < 0.5, np.ones((131, 97))), np.eye(499)]
    for mask in masks:
        np.testing.assert_array_equal(_decode_rle(rle(mask)), mask.astype(bool))


def test_no_string_but_one_whose_runs_fill_the_size_is_decoded():
    random, refused = np.random.default_rng(0), 0
    for _ in range(2000):
        counts = "".join(map(chr, random.integers(44, 116, random.integers(0, 9))))
        try:
            assert _decode_rle({"size": [2, 3], "counts": counts}).shape == (2, 3)
        except ValueError as error:
            refused += "fill its size, 2 x 3 = 6 pixels" in str(error)
    assert refused > 1900


MASK = np.array([[0, 1, 1], [0, 1, 0]])
FILL = "fill its size, 2 x 3 = 6 pixels, but these "


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([rle(MASK)], [MASK], "some are RLE dicts and some are not"),
        ([rle(MASK), MASK], [rle(MASK), MASK], "some are RLE dicts and some are not"),
        ([MASK, MASK], [MASK], "2 predictions and 1 references"),
        (None, [MASK], "none came"),
        ([MASK], [MASK.T], r"Expression 0 .* \(2, 3\) and \(3, 2\)"),
        ([rle(MASK), rle(MASK)], [rle(MASK), rle(MASK.T)], r"Expression 1 .* \(2, 3\) and \(3, 2\)"),
        ([255 * MASK], [MASK], "prediction is a mask .* int64"),
        ([MASK], [MASK / 2], "target is a mask .* float64"),
        ([[[0, 1], [1]]], [MASK], "rows of a mask have one length"),
        ([[1, 2]], [[1, 2]], r"prediction is a mask .* \(2,\)"),
        ([MASK], None, r"Pairs are integers .* \(1, 2, 3\)"),
        ([rle(MASK)], None, "Pairs are integers .* object"),
        ([[1, 2], [1, 2, 3]], None, "Pairs are integers .* object"),
        ([[3, 2]], None, r"row 0 is \[3, 2\]"),
        ([rle(MASK, size=[2, 4])], [rle(MASK)], "Expression 0 .* 2 x 4 = 8 pixels, but these cover 6"),
        ([rle(MASK, size=[2])], [rle(MASK)], r"size \[2\]"),
        ([rle(MASK, size=[-2, -3])], [rle(MASK)], r"size \[-2, -3\]"),
        ([{"counts": "6"}], [rle(MASK)], "size None"),
        ([rle(MASK, counts=[2, 3, 1])], [rle(MASK)], "counts of list"),
        ([rle(MASK, counts="")], [rle(MASK)], FILL + "are no compressed COCO string"),
        ([rle(MASK, counts="2 3 1")], [rle(MASK)], FILL + "are no compressed COCO string"),
        ([rle(MASK, counts="23é")], [rle(MASK)], FILL + "are no compressed COCO string"),
        ([rle(MASK, counts="23Q")], [rle(MASK)], FILL + "are no compressed COCO string"),
        ([rle(MASK, counts="oooooooo1")], [rle(MASK)], FILL + "are no compressed COCO string"),
        ([rle(MASK, counts="23")], [rle(MASK)], FILL + "cover 5"),
        ([rle(MASK, counts="53N")], [rle(MASK)], FILL + "are partly negative"),
    ],
)
def test_what_is_malformed_is_refused_and_what_came_before_stays(metric, predictions, references, message):
    metric.add_batch(predictions=[[1, 2]])
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=predictions, references=references)
    scores = metric.compute()
    assert (scores["count"], scores["oiou"]) == (1, 0.5)


def test_ids_that_do_not_fit_are_refused_and_the_metric_can_be_used_again(metric):
    with pytest.raises(ValueError, match="1 pairs and ids of int64"):
        metric.compute(predictions=[[1, 2]], image_ids=[1, 2])
    assert metric.compute(predictions=[[1, 4]])["oiou"] == 0.25
