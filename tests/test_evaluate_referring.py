"""Evaluation: the same for any number of processes, its rows and tables, its pages, and two models side by side."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from test_examples import TINY
from transformers import HfArgumentParser

from m3dec import M3DecConfig, M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples import evaluate_referring
from m3dec.examples.evaluate_referring import EvaluationArguments, without_nan
from m3dec.examples.evaluation.loop import evaluate, result_of
from m3dec.examples.evaluation.page import Truths, best, disputed, several_targets, worst
from m3dec.examples.evaluation.results import (
    COLUMNS,
    Answers,
    ExpressionResult,
    check_comparable,
    read_rows,
    write_rows,
)
from m3dec.examples.evaluation.tables import by_kind, by_length, by_size, comparison, peak_rates, text_table
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.sampling import references_by_image
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.referring_data.schema import decode_mask, encode_mask
from m3dec.processing.referring_iou import intersection_and_union

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@torch.inference_mode()
def one_by_one(model, processor, dataset: datasets.Dataset, threshold: float = 0.5) -> list[tuple[int, int]]:
    """[intersection, union] of every sentence in the order of (ref_id, sent_id), each by a call with its image."""
    pairs = {}
    for row in dataset:
        truth = decode_mask(row["mask"])
        for sentence in row["sentences"]:
            inputs = processor(images=row["image"], text=sentence["sent"]).to(dtype=model.dtype)
            outputs = model(**inputs)
            (answer,) = processor.post_process_referring_segmentation(outputs, [truth.shape], threshold)
            pairs[row["ref_id"], sentence["sent_id"]] = intersection_and_union(answer["mask"], truth)
    return [pairs[ids] for ids in sorted(pairs)]


def one_process() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of twenty drawn scenes in the official layout."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder, {"val": 20}, seed=5)
    return folder


@pytest.fixture(scope="module")
def scenes(data) -> datasets.Dataset:
    return load_referring_dataset("refer", root=data, dataset="scenes", split_by="scenes")["val"]


@pytest.fixture(scope="module")
def uneven(scenes) -> datasets.Dataset:
    """The same with one to five sentences an image; one of the third and the only one of the sixth has no word."""
    rows = []
    for place, numbers in enumerate(references_by_image(scenes).values()):
        references = [scenes[number] for number in numbers]
        keep = place % 5 + 1
        for reference in references:
            reference["sentences"] = reference["sentences"][:keep]
            keep -= len(reference["sentences"])
        if place in (2, 5):
            references[0]["sentences"][0]["sent"] = "..."
        rows += [reference for reference in references if reference["sentences"]]
    return datasets.Dataset.from_list(rows, features=scenes.features)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A folder with a small model of random weights that says something, and its processor."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    processor.image_processor.size = {"height": 64, "width": 64}
    model = M3DecForImageSegmentation(M3DecConfig(vocab_size=len(processor.tokenizer), **TINY))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answered(scenes) -> Answers:
    """What the shipped checkpoint answers about six of the scenes."""
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT)
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    results = evaluate(model, processor, first_images(scenes, 6), one_process(), keep_masks=True)
    return Answers("shipped", "scenes (scenes)", "val", 0.5, results)


def first_images(dataset: datasets.Dataset, count: int) -> datasets.Dataset:
    groups = list(references_by_image(dataset).values())[:count]
    return dataset.select([number for numbers in groups for number in numbers])


def result(number: int = 1, **changes) -> ExpressionResult:
    """A result of a 40 x 50 image: half of a target of 100 pixels found."""
    plain = {
        "image_id": number,
        "file_name": f"{number}.jpg",
        "ref_id": number,
        "sent_id": number,
        "expression": "the red ring",
        "words": 3,
        "category": None,
        "height": 40,
        "width": 50,
        "intersection": 50,
        "union": 100,
        "predicted": 50,
        "target": 100,
        "score": 0.75,
        "peak_in_target": True,
    }
    return ExpressionResult(**plain | changes)


def run_program(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate_referring.py", *map(str, arguments)])
    evaluate_referring.main()


# --- several processes ---------------------------------------------------------------------------------------------

CHILD = """
import dataclasses, json, sys
import datasets
from accelerate import Accelerator
from accelerate.utils import gather_object
from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluation.loop import evaluate
from m3dec.processing.referring_data.sampling import references_by_image

folder, data, output, threshold, *counts = sys.argv[1:]
accelerator, encoded = Accelerator(cpu=True), []
assert accelerator.num_processes == 2
model, processor = M3DecForImageSegmentation.from_pretrained(folder), M3DecProcessor.from_pretrained(folder)
model.model.vision_encoder.register_forward_hook(lambda module, inputs, outputs: encoded.append(len(outputs)))
everything, answers = datasets.load_from_disk(data), {}
for count in counts:
    groups = list(references_by_image(everything).values())[: int(count)]
    part = everything.select([number for numbers in groups for number in numbers])
    results = evaluate(model, processor, part, accelerator, 3, float(threshold), keep_masks=True)
    answers[count] = {"rows": [dataclasses.asdict(row) for row in results], "encoded": gather_object([sum(encoded)])}
    encoded.clear()
if accelerator.is_main_process:
    with open(output, "w") as file:
        json.dump(answers, file)
"""


def by_two_processes(folder: Path, dataset: datasets.Dataset, threshold: float, counts, tmp_path: Path) -> dict:
    dataset.save_to_disk(tmp_path / "rows")
    (tmp_path / "child.py").write_text(CHILD)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, tmp_path / "child.py", folder, tmp_path / "rows", tmp_path / "answers.json", threshold]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(part) for part in [*command, *counts]], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {int(count): answers for count, answers in json.loads((tmp_path / "answers.json").read_text()).items()}


def median_probability(model, processor, dataset) -> float:
    """A threshold at which random weights answer with about half of an image."""
    inputs = processor(images=dataset[0]["image"], text=dataset[0]["sentences"][0]["raw"])
    with torch.inference_mode():
        return model.eval()(**inputs).logits.median().sigmoid().item()


@pytest.fixture
def one_thread():
    """As the two processes have; sums of floats depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_give_the_rows_of_one_for_1_to_20_images(tiny, uneven, one_thread, tmp_path):
    model, processor = M3DecForImageSegmentation.from_pretrained(tiny), M3DecProcessor.from_pretrained(tiny)
    threshold = median_probability(model, processor, uneven)
    together = by_two_processes(tiny, uneven, threshold, range(1, 21), tmp_path)
    for count in range(1, 21):
        part = first_images(uneven, count)
        alone = evaluate(model, processor, part, one_process(), 3, threshold, keep_masks=True)
        assert len(alone) == sum(len(row["sentences"]) for row in part.remove_columns("image"))
        assert together[count]["rows"] == [dataclasses.asdict(row) for row in alone]
        assert sum(together[count]["encoded"]) == count - (count > 5)  # the sixth has nothing to ask
        assert min(together[count]["encoded"]) > 0 or count <= 3  # each took a part, where there are two batches
    assert len({row.predicted for row in alone}) > len(alone) // 2  # the answers are something that could differ


@pytest.mark.slow
def test_the_program_in_two_processes_writes_and_prints_once_what_it_does_in_one(tiny, data, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    printed = {}
    for name, launcher in (
        ("one", []),
        ("two", ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]),
    ):
        files = ["--rows", tmp_path / f"{name}.parquet", "--json", tmp_path / f"{name}.json"]
        flags = ["--model", tiny, "--data_root", data, *files, "--per_device_eval_batch_size", "3"]
        command = [sys.executable, "-m", *launcher, "m3dec.examples.evaluate_referring", *flags]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "7/7" in done.stderr if name == "one" else "4/4" in done.stderr  # batches of the first process
        printed[name] = done.stdout
    assert printed["one"] == printed["two"] != ""
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert read_rows(tmp_path / "one.parquet") == read_rows(tmp_path / "two.parquet")


# --- each image once -----------------------------------------------------------------------------------------------


def test_an_image_once_for_all_expressions_gives_the_counts_of_one_call_per_expression(tiny, uneven):
    model, processor = M3DecForImageSegmentation.from_pretrained(tiny).double(), M3DecProcessor.from_pretrained(tiny)
    part = first_images(uneven, 9)
    asked = part.select([n for n, row in enumerate(part) if all(s["sent"] != "..." for s in row["sentences"])])
    threshold = median_probability(model.float(), processor, asked)
    expected = one_by_one(model.double().eval(), processor, asked, threshold)
    results = evaluate(model, processor, asked, one_process(), 4, threshold)
    assert [(row.intersection, row.union) for row in results] == expected
    assert len({union for _, union in expected}) > 10


def test_in_single_precision_only_pixels_at_the_very_threshold_may_change_sides(scenes):
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT).eval()
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    some = first_images(scenes, 3)
    together = evaluate(model, processor, some, one_process(), 3, keep_masks=True)
    texts = {sentence["sent_id"]: (row["image"], sentence["sent"]) for row in some for sentence in row["sentences"]}
    for row in together:
        image, text = texts[row.sent_id]
        with torch.inference_mode():
            logits = model(**processor(images=image, text=text)).logits
        (alone,) = processor.post_process_referring_segmentation(logits, [(row.height, row.width)])
        exact = F.interpolate(logits.double()[None], (row.height, row.width), mode="bilinear")[0, 0].sigmoid().numpy()
        changed = row.answer() != alone["mask"]
        assert (np.abs(exact[changed] - 0.5) < 1e-4).all()
        assert row.score == pytest.approx(alone["score"], abs=1e-4)


# --- a result ------------------------------------------------------------------------------------------------------


def mask_of(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((10, 12), bool)
    mask[rows, columns] = True
    return mask


def judged(own: np.ndarray, others: list[np.ndarray], peak: tuple[int, int] | None) -> ExpressionResult:
    """The result of an answer with `peak` to a sentence that means `own`, beside other targets."""
    row = {"image_id": 1, "file_name": "1.jpg", "ref_id": 2, "height": 10, "width": 12, "mask": encode_mask(own)}
    sentence = {"sent_id": 3, "sent": "the red ring , left", "raw": "The red ring, left", "category": "relation"}
    targets = {encode_mask(mask)["counts"]: mask for mask in [own, *others]}
    answer = {"mask": mask_of(slice(0, 5), slice(0, 12)), "score": 0.9, "peak": peak}
    return result_of(row, sentence, "sent", answer, targets, keep_masks=True)


def test_a_result_counts_pixels_and_words_and_carries_the_answer():
    row = judged(mask_of(slice(3, 7), slice(2, 5)), [], (3, 4))
    assert (row.intersection, row.union, row.predicted, row.target) == (6, 66, 60, 12)
    assert (row.expression, row.words, row.category, row.score) == ("the red ring , left", 4, "relation", 0.9)
    assert (row.answer() == mask_of(slice(0, 5), slice(0, 12))).all()
    assert (row.peak_in_target, row.blind_chance) == (True, None)  # one target: nothing to mistake it for


@pytest.mark.parametrize(
    ("peak", "in_target", "chance"),
    [
        ((1, 1), True, 1 / 3),  # on its own target
        ((1, 10), False, 1 / 3),  # on another's
        ((9, 0), False, 0.0),  # on nothing meant
        ((8, 11), False, 0.0),
        ((1, 3), True, 2 / 3),  # on two that overlap
        (None, False, None),  # not asked
    ],
)
def test_the_chance_of_a_blind_model_is_the_share_of_targets_that_hold_its_peak(peak, in_target, chance):
    own, overlapping, apart = (mask_of(slice(0, 4), columns) for columns in (slice(0, 4), slice(3, 7), slice(9, 12)))
    empty = mask_of(slice(0, 0), slice(0, 0))
    row = judged(own, [overlapping, apart, empty, own], peak)
    assert (row.peak_in_target, row.blind_chance) == (in_target, chance)
    assert judged(empty, [overlapping, apart], (1, 4)).blind_chance is None


def test_peak_rates_are_the_share_of_peaks_in_their_target_beside_that_of_a_blind_model():
    rows = [
        result(1, peak_in_target=True, blind_chance=0.5),
        result(1, peak_in_target=False, blind_chance=0.5),
        result(2, peak_in_target=True, blind_chance=0.25),
        result(2, peak_in_target=True, blind_chance=0.0),
        result(3, peak_in_target=False, blind_chance=None),
    ]
    assert peak_rates(rows) == (0.75, 0.3125)
    assert all(map(math.isnan, peak_rates(rows[4:])))


def test_the_shipped_model_listens(answered):
    own, blind = peak_rates(answered.results)
    assert own > 0.8 > 0.35 > blind > 0.1


class Deaf(torch.nn.Module):
    """Answers every sentence with that about the image's first."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.dtype, self.device = model, model.config, model.dtype, model.device
        self.get_image_features = model.get_image_features
        self.get_input_embeddings = model.get_input_embeddings

    def forward(self, input_ids, attention_mask, image_index, image_features):
        first = torch.stack([(image_index == index).nonzero()[0, 0] for index in image_index])
        words, mask = input_ids[first], attention_mask[first]
        return self.model(None, words, mask, image_index, image_features=image_features)


def test_a_model_that_does_not_listen_reaches_what_a_blind_one_would(scenes):
    model = Deaf(M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT))
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    own, blind = peak_rates(evaluate(model, processor, first_images(scenes, 5), one_process(), 5))
    assert own == pytest.approx(blind, abs=0.05) and blind > 0.15


# --- tables --------------------------------------------------------------------------------------------------------


def test_every_result_is_in_one_band_of_length_and_one_of_size():
    words = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 40]
    targets = [100, 1023, 1024, 9215, 9216, 10**6]
    rows = [result(number, words=count) for number, count in enumerate(words)]
    lengths = by_length(rows)
    assert {name: row["count"] for name, row in lengths.items()} == {
        "no word": 1, "1-2": 2, "3": 1, "4-5": 2, "6-7": 2, "8-10": 2, "11+": 2,
    }  # fmt: skip
    assert all(row["miou"] == 0.5 for row in lengths.values())
    rows = [result(area, target=area, intersection=0, predicted=50, union=area + 50) for area in targets]
    rows.append(result(0, target=0, intersection=0, predicted=0, union=0))
    counts = {name: row["count"] for name, row in by_size(rows).items()}
    assert counts == {"no target": 1, "small": 2, "medium": 2, "large": 2}
    assert "n_acc" in text_table(by_size(rows), "target size").splitlines()[0]


def test_a_kind_of_the_name_of_a_table_does_not_take_its_place():
    kinds = by_kind([result(1, category="by_size"), result(2, category="all"), result(3)])
    assert {name: row["count"] for name, row in kinds.items()} == {"all": 3, "kind 'all'": 1, "kind 'by_size'": 1}


# --- rows ----------------------------------------------------------------------------------------------------------


def test_rows_come_back_from_their_file_and_say_what_any_reader_needs(answered, tmp_path):
    path = tmp_path / "new" / "rows.parquet"
    write_rows(path, answered)
    write_rows(path, answered)  # over an earlier one
    assert [file.name for file in path.parent.iterdir()] == ["rows.parquet"]
    assert read_rows(path) == answered
    rows = pq.read_table(path)
    assert rows.schema.names == COLUMNS.names and len(rows) == len(answered.results)
    last = rows.to_pylist()[-1]
    assert last["iou"] == last["intersection"] / last["union"]
    assert (
        decode_mask({"size": [last["height"], last["width"]], "counts": last["predicted_mask"]}).sum()
        == (last["predicted"])
    )


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("iou\n0.5\n")
    pq.write_table(pa.table({"iou": [0.5]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="not readable as one"):
        read_rows(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="lacks blind_chance, category"):
        read_rows(tmp_path / "other.parquet")
    with pytest.raises(OSError, match="missing"):
        read_rows(tmp_path / "missing.parquet")


# --- two models ----------------------------------------------------------------------------------------------------


def run_of(results: list[ExpressionResult], **changes) -> Answers:
    return Answers(**{"model": "one", "data": "ours", "split": "val", "threshold": 0.5, "results": results} | changes)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (run_of([result(1), result(2)], threshold=0.35), "one threshold, but one answered at 0.5 and one at 0.35"),
        (run_of([result(1), result(3)]), "same expressions, but one answered 2 of ours val .* and 1 are the same"),
        (run_of([result(1)], split="test"), "one 1 of ours test, and 1 are the same"),
        (run_of([result(1), result(2, file_name="x.jpg")]), "and 1 are the same"),
        (run_of([result(1), result(2, target=60, union=60)]), "1 of 2 differ, such as that of sentence 2 .* 100 pix"),
        (run_of([result(1), result(2, category="q")]), "1 of 2 differ, .* q, for one"),
    ],
)
def test_models_that_answered_something_else_are_not_compared(other, message):
    with pytest.raises(ValueError, match=message):
        check_comparable(run_of([result(1), result(2)]), other)


def test_a_comparison_tells_the_difference_its_interval_and_who_solves_what():
    found = {"intersection": 80, "union": 100, "predicted": 80}
    ours = [result(number, **found) for number in range(1, 8)] + [result(8)]
    theirs = [result(number) for number in range(1, 7)] + [result(7, **found), result(8, **found)]
    figures = comparison(run_of(ours), run_of(theirs[::-1]))  # any order
    assert (figures["A"]["all"]["miou"], figures["B"]["all"]["miou"]) == pytest.approx((0.7625, 0.575))
    assert [figures[f"solved_by_{who}"] for who in ("both", "A_only", "B_only", "neither")] == [1, 6, 1, 0]
    miou = figures["differences"]["miou"]
    assert miou["difference"] == pytest.approx(0.1875)
    assert 0 < miou["low"] < miou["difference"] < miou["high"] and not miou["undecided"]
    pr = figures["differences"]["pr@0.9"]
    assert pr == {"difference": 0.0, "low": 0.0, "high": 0.0, "undecided": True}


# --- pages ---------------------------------------------------------------------------------------------------------


def test_the_cases_of_a_page_are_one_of_each_image_and_the_same_whatever_the_order(answered, scenes):
    rows, truths = answered.results, Truths(scenes, answered.results)
    for choose in (best, worst):
        cases = choose(rows)
        assert len({case.image_key for case in cases}) == len(cases) == 6
        assert cases == choose(rows[::-1])
    assert best(rows)[0].iou == max(row.iou for row in rows)
    assert worst(rows)[0].iou == min(row.iou for row in rows)
    for group in several_targets(rows, truths):
        assert len({row.image_key for row in group}) == 1 and all(row.solved for row in group)
        assert len({truths.run_lengths(row)["counts"] for row in group}) == len(group) > 1


def test_disputed_are_two_answers_that_claim_the_same_pixels_for_different_targets(scenes):
    numbers = next(iter(references_by_image(scenes).values()))
    references = [scenes[number] for number in numbers[:3]]
    answer = decode_mask(references[0]["mask"])
    rows = [
        result(
            row["image_id"],
            file_name=row["file_name"],
            ref_id=row["ref_id"],
            sent_id=10 * row["ref_id"] + number,
            height=160,
            width=160,
            predicted_mask=encode_mask(answer if row is not references[2] else ~answer)["counts"],
        )
        for row in references
        for number in range(2)
    ]
    rows = [dataclasses.replace(row, target=int(decode_mask(mask_by_id(references, row)).sum())) for row in rows]
    ((pair, of_answers, of_targets),) = disputed(rows, Truths(scenes, rows))
    assert [row.ref_id for row in pair] == [references[0]["ref_id"], references[1]["ref_id"]]
    assert of_answers == 1.0 > of_targets


def mask_by_id(references: list[dict], row: ExpressionResult) -> dict:
    return next(reference["mask"] for reference in references if reference["ref_id"] == row.ref_id)


def test_a_page_shows_only_answers_about_the_data_it_is_given(answered, scenes):
    with pytest.raises(ValueError, match=r"of the target of reference \d+, .* this split has none"):
        Truths(scenes.select([0]), answered.results)
    changed = [dataclasses.replace(answered.results[0], target=1)]
    with pytest.raises(ValueError, match=r"1 pixels in .*, this split has one of \d+ pixels"):
        Truths(scenes, changed)


class Links(HTMLParser):
    """Collects what a page points to, and its tags."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.tags, self.alts = [], set(), []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.alts += [value for name, value in attributes if name == "alt"]


@pytest.fixture(scope="module")
def pages(data, answered, tmp_path_factory) -> Path:
    """A folder with two runs' rows, one in hostile words, the page of one and the page of both."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = [dataclasses.replace(row, expression='<script>alert("&")</script>') for row in answered.results]
    empty = encode_mask(np.zeros((160, 160), bool))["counts"]
    nothing = {"intersection": 0, "predicted": 0, "predicted_mask": empty, "score": 0.0}
    worse = [
        dataclasses.replace(row, union=row.target, **nothing) if number % 3 == 0 else row
        for number, row in enumerate(hostile)
    ]
    write_rows(folder / "one.parquet", dataclasses.replace(answered, results=hostile, model="<b>one</b>"))
    write_rows(folder / "two.parquet", dataclasses.replace(answered, results=worse, model="two"))
    where = ("--data_root", data, "--split", "val", "--page")
    with pytest.MonkeyPatch.context() as patch:
        run_program(patch, "--model", folder / "one.parquet", *where, folder / "page", "--confidence", "0.9")
        pair = (folder / "one.parquet", folder / "two.parquet")
        run_program(patch, "--compare", *pair, *where, folder / "both", "--json", folder / "both.json")
    return folder


@pytest.mark.parametrize("name", ["page", "both"])
def test_a_page_lies_in_its_folder_with_all_it_shows_and_runs_nothing(pages, name):
    page = Links(pages / name / "index.html")
    assert page.links and len(page.links) == len(set(page.links)) == len(page.alts)
    files = {str(path.relative_to(pages / name)) for path in (pages / name / "pictures").iterdir()}
    assert set(page.links) == files
    assert not page.tags & {"script", "link", "iframe", "object", "b"}
    text = (pages / name / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text and "&lt;b&gt;one" in text
    assert "://" not in text and "url(" not in text and "@import" not in text


def test_the_page_of_two_shows_what_the_one_solves_and_the_other_does_not(pages, answered):
    figures = json.loads((pages / "both.json").read_text())
    assert figures["solved_by_A_only"] > 0 == figures["solved_by_B_only"]
    assert figures["A"] == by_kind(answered.results)
    text = (pages / "both" / "index.html").read_text(encoding="utf-8")
    assert "A is better" in text and text.count("No such case.") == 1  # nowhere is B better


def test_the_same_rows_make_the_same_page(pages, data, tmp_path, monkeypatch):
    flags = ("--model", pages / "one.parquet", "--data_root", data, "--confidence", "0.9", "--page", tmp_path)
    run_program(monkeypatch, *flags)
    for path in (pages / "page").rglob("*.*"):
        assert (tmp_path / path.relative_to(pages / "page")).read_bytes() == path.read_bytes(), path.name


PROBE = """<script>
addEventListener("load", () => {
  const widths = [...document.images].map(image => image.naturalWidth);
  const asked = performance.getEntriesByType("resource").map(entry => entry.name);
  const wide = document.documentElement.scrollWidth - innerWidth;
  document.body.setAttribute("data-probe", JSON.stringify({widths, asked, wide}));
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1400, 500])
@pytest.mark.parametrize("name", ["page", "both"])
def test_a_browser_loads_every_image_and_nothing_else(pages, name, width):
    page = pages / name / f"probe_{width}.html"
    text = (pages / name / "index.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    flags = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --virtual-time-budget=8000 --dump-dom"
    )
    with tempfile.TemporaryDirectory() as profile:
        size = (f"--window-size={width},1200", f"--user-data-dir={profile}")
        command = [CHROMIUM, *flags.split(), *size, page.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    page.unlink()
    probe = json.loads(Probe(dom).found)
    assert len(probe["widths"]) == text.count("<img ") > 0 and min(probe["widths"]) == 480
    assert all(address.startswith((pages / name).as_uri() + "/pictures/") for address in probe["asked"])
    assert probe["wide"] <= 0  # no scrolling sideways


class Probe(HTMLParser):
    """What the probe left at the page's body."""

    def __init__(self, dom: str):
        super().__init__()
        self.found = ""
        self.feed(dom)

    def handle_starttag(self, tag, attributes):
        if tag == "body":
            self.found = dict(attributes).get("data-probe", "")


# --- the program ---------------------------------------------------------------------------------------------------


def test_the_program_writes_its_figures_with_every_table(tiny, data, tmp_path, monkeypatch, capsys):
    flags = (
        "--data_root",
        data,
        "--threshold",
        "0.35",
        "--rows",
        tmp_path / "a.parquet",
        "--json",
        tmp_path / "a.json",
    )
    run_program(monkeypatch, "--model", tiny, *flags)
    figures = json.loads((tmp_path / "a.json").read_text())
    run = read_rows(tmp_path / "a.parquet")
    assert (run.model, run.data, run.split, run.threshold) == (str(tiny), "scenes (scenes)", "val", 0.35)
    assert {name: figures[name] for name in by_kind(run.results)} == by_kind(run.results)
    assert (figures["by_length"], figures["by_size"]) == (by_length(run.results), by_size(run.results))
    assert figures["listening"].keys() == {"peak_in_target", "blind_chance"}
    printed = capsys.readouterr().out
    assert "threshold 0.35" in printed and "target size" in printed and "does not listen" in printed

    run_program(monkeypatch, "--compare", tmp_path / "a.parquet", tmp_path / "a.parquet")  # needs no data
    assert capsys.readouterr().out.count("undecided") == 7
    run_program(monkeypatch, "--model", tmp_path / "a.parquet")
    assert "val, threshold 0.35" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"made with threshold 0.35.* give --threshold 0.35"):
        run_program(monkeypatch, "--model", tmp_path / "a.parquet", "--threshold", "0.5")
    with pytest.raises(SystemExit, match=r"a.parquet was made on val, so it says nothing about testB"):
        run_program(monkeypatch, "--model", tmp_path / "a.parquet", "--split", "testB")
    monkeypatch.setattr(evaluate_referring, "evaluate", pytest.fail)  # refused before a model is measured
    with pytest.raises(SystemExit, match=r"made with threshold 0.35.* give --threshold 0.35"):
        run_program(monkeypatch, "--compare", tiny, tmp_path / "a.parquet", "--data_root", data)
    with pytest.raises(SystemExit, match="no-such-model"):
        run_program(monkeypatch, "--compare", tiny, tmp_path / "no-such-model", "--data_root", data)


def test_an_image_of_another_size_than_its_masks_is_not_scored(tiny, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    image = next((tmp_path / "data" / "scenes" / "images").glob("*val*"))
    Image.open(image).crop((0, 0, 100, 160)).save(image)
    with pytest.raises(SystemExit, match=rf"{image.name} is \(100, 160\) and its masks are for \(160, 160\)"):
        run_program(monkeypatch, "--model", tiny, "--data_root", tmp_path / "data")


def test_figures_of_no_expressions_are_null_in_json():
    figures = {"no target": {"t_acc": math.nan, "count": 0}, "all": {"miou": 0.5}}
    assert json.loads(json.dumps(without_nan(figures), allow_nan=False))["no target"] == {"t_acc": None, "count": 0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--model MODEL .* or --compare A B"),
        ("--model a --compare b c", "one of them"),
        ("--compare a", "two, A and B, but got 1: a"),
        ("--compare a b c", "but got 3: a b c"),
        ("--compare a b --rows c.parquet", "one model's"),
        ("--model a --rows rows.csv", "rows.csv does not end in .parquet"),
        ("--model a --confidence 95", "between 0 and 1"),
        ("--model a --threshold 1.5", "between 0 and 1"),
        ("--model missing.parquet", "missing.parquet"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused_in_a_sentence(flags, message, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run_program(monkeypatch, *flags.split())


@pytest.mark.parametrize("flag", ["--rows", "--json", "--page"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_asked(flag, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file"):
        run_program(monkeypatch, "--model", "m", flag, tmp_path / "file" / "folder" / "a.parquet")


def test_the_flags_of_earlier_runs_still_parse():
    flags = ["--model", "m", "--split", "test", "--threshold", "0.35", "--confidence", "0.9", "--json", "figures.json"]
    (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(flags)
    assert (arguments.model, arguments.threshold, arguments.compare) == ("m", 0.35, None)
