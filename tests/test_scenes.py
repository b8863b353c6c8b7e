"""The drawn scenes, judged from the written files by code that shares nothing with the generator."""

import hashlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from m3dec.processing.referring_data import REFERRING_FEATURES, decode_mask, load_referring_dataset
from m3dec.processing.referring_data.scenes import COLORS, KINDS, draw_scene, write_scenes

SPLIT_SIZES = {"train": 150, "val": 40, "test": 30, "compositional": 80}
SIDE = 160


class Files:
    """What `write_scenes` wrote, indexed."""

    def __init__(self, folder):
        self.folder = folder
        self.refs = pickle.loads((folder / "refs(scenes).p").read_bytes())
        self.instances = json.loads((folder / "instances.json").read_text())
        self.annotations = {entry["id"]: entry for entry in self.instances["annotations"]}
        self.images = {entry["id"]: entry for entry in self.instances["images"]}
        self.of_image = {image_id: [] for image_id in self.images}
        for entry in self.instances["annotations"]:
            self.of_image[entry["image_id"]].append(entry)

    def sentences(self, *splits):
        """Every (ref, sentence) of the splits named, or of all."""
        return [(r, s) for r in self.refs if not splits or r["split"] in splits for s in r["sentences"]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(write_scenes(tmp_path_factory.mktemp("data"), SPLIT_SIZES, seed=3))


@pytest.fixture(scope="module")
def splits(files):
    return load_referring_dataset("refer", root=files.folder.parent, dataset="scenes", split_by="scenes")


# ---- An evaluator of the sentences themselves, from words, attributes and boxes alone --------------------------------

MEANINGS = {
    "shape": "circle square triangle star ring cross moon heart disk=circle plus=cross crescent=moon",
    "colour": "red orange yellow green blue purple pink violet=purple",
    "size": "small large little=small tiny=small big=large",
    "fill": "filled=solid outlined hollow=outlined",
    "texture": "plain striped dotted spotted=dotted",
}
WORDS = {
    entry.split("=")[0]: (attribute, entry.split("=")[-1])
    for attribute, text in MEANINGS.items()
    for entry in text.split()
}
SIDES = {
    "left": "left of|to the left of|on the left side of",
    "right": "right of|to the right of|on the right side of",
    "top": "above|over|higher than",
    "bottom": "below|under|beneath",
}
EXTREMES = {
    "left": "leftmost|furthest left|farthest to the left",
    "right": "rightmost|furthest right|farthest to the right",
    "top": "topmost|highest|uppermost|nearest the top",
    "bottom": "lowest|furthest down|nearest the bottom",
}
DISTANCES = {
    "nearest": "nearest to|closest to|nearest",
    "farthest": "farthest from|furthest from|farthest away from",
}


def centre(entry):
    x, y, width, height = entry["bbox"]
    return x + width / 2, y + height / 2


def offset(entry, side):
    """How far the centre lies towards a side, in pixels."""
    x, y = centre(entry)
    return {"left": -x, "right": x, "top": -y, "bottom": y}[side]


def named(phrase, entries):
    words = [word for word in phrase.split() if word not in ("the", "a", "that", "which", "is")]
    assert all(word in WORDS or word in ("thing", "object", "shape") for word in words), phrase
    wanted = [WORDS[word] for word in words if word in WORDS]
    return [e for e in entries if all(e["attributes"][attribute] == value for attribute, value in wanted)]


def cut(text, choices):
    """The text before and after the phrase of one of `choices`, and which choice it was; the longest phrase wins."""
    found = [
        (match.start(), -len(match.group()), name, match)
        for name, phrases in choices.items()
        for phrase in phrases.split("|")
        for match in [re.search(rf"\b{phrase}\b", text)]
        if match
    ]
    *_, name, match = min(found, key=lambda f: f[:2])
    return text[: match.start()], text[match.end() :], name


def meant(sent, kind, entries):
    """(annotations that the sentence means, annotations that its noun phrase alone would admit)."""
    if kind == "attribute":
        return named(sent, entries), entries
    if kind == "negation":
        noun, denied = sent.split(" not ")
        candidates, excluded = named(noun, entries), named(denied, entries)
        return [e for e in candidates if e not in excluded], candidates
    if kind == "superlative":
        before, after, side = cut(sent, EXTREMES)
        candidates = named(before + after, entries)
        best = max(offset(e, side) for e in candidates)
        return [e for e in candidates if offset(e, side) > best - 0.05 * SIDE], candidates
    if kind == "ordinal":
        noun, side = sent.rsplit(" from the ", 1)
        rank = next(n for n, word in ((2, "second"), (3, "third"), (4, "fourth")) if word in noun.split())
        candidates = named(re.sub("second|third|fourth", "", noun), entries)
        order = sorted(candidates, key=lambda e: -offset(e, side))
        place = offset(order[rank - 1], side)
        rivals = [e for e in order[: rank - 1] + order[rank:] if abs(offset(e, side) - place) < 0.05 * SIDE]
        return [order[rank - 1], *rivals], candidates
    if kind == "relation":
        noun, anchor, side = cut(sent, SIDES)
        (anchor,) = named(anchor, entries)
        candidates = [e for e in named(noun, entries) if e is not anchor]
        return [e for e in candidates if offset(e, side) > offset(anchor, side)], candidates
    distances = {
        "nearest": "nearest to|closest to|nearest",
        "farthest": "farthest from|furthest from|farthest away from",
    }
    noun, anchor, which = cut(sent, distances)
    (anchor,) = named(anchor, entries)
    candidates = [e for e in named(noun, entries) if e is not anchor]
    away = [math.dist(centre(e), centre(anchor)) for e in candidates]
    if which == "nearest":
        return [e for e, d in zip(candidates, away, strict=True) if d < 1.15 * min(away)], candidates
    return [e for e, d in zip(candidates, away, strict=True) if 1.15 * d > max(away)], candidates


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_means_its_target_and_nothing_else(files, kind):
    said = [(ref, sentence) for ref, sentence in files.sentences() if sentence["category"] == kind]
    assert said
    for ref, sentence in said:
        answer, _ = meant(sentence["sent"], kind, files.of_image[ref["image_id"]])
        assert [entry["id"] for entry in answer] == [ref["ann_id"]], (sentence["sent"], ref)


@pytest.mark.parametrize("kind", ["relation", "nearest", "ordinal", "superlative"])
def test_attributes_alone_do_not_find_the_target(files, kind):
    for ref, sentence in files.sentences():
        if sentence["category"] == kind:
            _, candidates = meant(sentence["sent"], kind, files.of_image[ref["image_id"]])
            assert len(candidates) >= 2, sentence["sent"]
            assert ref["ann_id"] in [entry["id"] for entry in candidates]


def test_attribute_and_negation_have_a_distractor_that_differs_in_one_attribute(files):
    for ref, sentence in files.sentences():
        if sentence["category"] in ("attribute", "negation"):
            target = files.annotations[ref["ann_id"]]["attributes"]
            differences = [
                sum(entry["attributes"][name] != target[name] for name in target)
                for entry in files.of_image[ref["image_id"]]
            ]
            assert 1 in differences, sentence["sent"]


# ---- The mix --------------------------------------------------------------------------------------------------------


def test_each_kind_is_a_sixth_of_the_expressions_of_every_split(files):
    for split, size in SPLIT_SIZES.items():
        kinds = Counter(sentence["category"] for _, sentence in files.sentences(split))
        assert kinds == dict.fromkeys(KINDS, size)


def test_scenes_have_three_to_eight_shapes_in_equal_parts(files):
    counts = Counter(map(len, files.of_image.values()))
    expected = sum(SPLIT_SIZES.values()) / 6
    assert sorted(counts) == [3, 4, 5, 6, 7, 8]
    assert all(abs(count - expected) < 4 * math.sqrt(expected) for count in counts.values())


def test_expressions_have_2_to_15_words_and_are_written_as_the_official_ones(files):
    sent_ids = []
    for ref in files.refs:
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert 1 <= len(ref["sentences"]) <= 3
        sent_ids += ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert 2 <= len(sentence["sent"].split()) <= 15
            assert sentence["tokens"] == sentence["sent"].split()
            assert sentence["raw"].lower().rstrip(".") == sentence["sent"]
    assert sent_ids == list(range(6 * len(files.images)))
    raws = [sentence["raw"] for _, sentence in files.sentences()]
    assert any(raw[0].isupper() for raw in raws) and any(raw.endswith(".") for raw in raws)


def test_synonyms_and_every_attribute_are_said(files):
    said = {word for _, sentence in files.sentences() for word in sentence["tokens"]}
    assert set(WORDS) | {"thing", "object", "shape", "leftmost", "closest", "second", "third", "fourth"} <= said


def test_the_median_target_covers_at_most_4_percent(files):
    areas = [files.annotations[ref["ann_id"]]["area"] / SIDE**2 for ref, _ in files.sentences()]
    assert 0.01 < np.median(areas) <= 0.04


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_without_reading_the_largest_shape_or_all_shapes_stay_under_30_percent(files, split):
    largest, union = [], []
    for ref, _ in files.sentences(split):
        entries = files.of_image[ref["image_id"]]
        target = files.annotations[ref["ann_id"]]
        largest.append(max(entries, key=lambda e: e["area"]) is target)  # shapes do not share pixels: IoU 1 or 0
        union.append(target["area"] / sum(e["area"] for e in entries))
    assert np.mean(largest) < 0.30 and np.mean(union) < 0.30


def test_every_target_of_the_compositional_split_has_a_pair_no_other_split_shows(files):
    def pair(entry):
        return entry["attributes"]["shape"], entry["attributes"]["colour"]

    compositional = {ref["image_id"] for ref in files.refs if ref["split"] == "compositional"}
    seen = {pair(e) for e in files.instances["annotations"] if e["image_id"] not in compositional}
    asked = {pair(files.annotations[ref["ann_id"]]) for ref in files.refs if ref["split"] == "compositional"}
    assert len(seen) == 8 * 7 - 8 and len(asked) == 8  # all that may be there is there
    assert not seen & asked
    assert {shape for shape, _ in asked} == {shape for shape, _ in seen}  # each word was seen, only not together


# ---- Masks, images, files -----------------------------------------------------------------------------------------


def test_masks_are_what_pycocotools_makes_of_the_file_and_share_no_pixel(files, splits):
    kinds = Counter()
    owners = {image_id: np.zeros((SIDE, SIDE), dtype=int) for image_id in files.images}
    for entry in files.instances["annotations"]:
        parts = entry["segmentation"]
        kinds[type(parts)] += 1
        runs = parts if isinstance(parts, dict) else coco_mask.merge(coco_mask.frPyObjects(parts, SIDE, SIDE))
        mask = coco_mask.decode(runs)
        assert mask.sum() == entry["area"]
        assert list(coco_mask.toBbox(runs)) == entry["bbox"]
        owners[entry["image_id"]] += mask
    assert kinds[list] > kinds[dict] > 0.1 * kinds[list]
    assert all(owner.max() == 1 for owner in owners.values())

    for row in splits["val"]:
        (entry,) = (files.annotations[i] for i in row["ann_id"])
        parts = entry["segmentation"]
        runs = [parts] if isinstance(parts, dict) else coco_mask.frPyObjects(parts, SIDE, SIDE)
        np.testing.assert_array_equal(decode_mask(row["mask"]), coco_mask.decode(runs).any(axis=2))


def test_a_mask_lies_on_the_shape_it_describes(files):
    """Plain solid shapes that are alone in their colour can be cut out of the image by colour."""
    overlaps = []
    for image_id, entries in files.of_image.items():
        pixels = np.asarray(Image.open(files.folder / "images" / files.images[image_id]["file_name"])).astype(int)
        colours = Counter(entry["attributes"]["colour"] for entry in entries)
        for entry in entries:
            look = entry["attributes"]
            if colours[look["colour"]] > 1 or (look["fill"], look["texture"]) != ("solid", "plain"):
                continue
            parts = entry["segmentation"]
            mask = coco_mask.decode(
                parts if isinstance(parts, dict) else coco_mask.merge(coco_mask.frPyObjects(parts, SIDE, SIDE))
            ).astype(bool)
            median = np.median(pixels[mask], axis=0)
            assert min(COLORS, key=lambda name: math.dist(COLORS[name], median)) == look["colour"]
            body = np.abs(pixels - median).max(axis=2) < 30
            inner = mask.copy()  # without the darker edge
            for axis in (0, 1):
                inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
            overlaps.append((body & inner).sum() / (inner | (body & ~mask)).sum())
    assert len(overlaps) > 20
    assert np.median(overlaps) > 0.92 and min(overlaps) > 0.75  # 0.89 if all were one pixel off


def test_the_files_are_read_into_the_schema(files, splits):
    assert {
        name: len({row["image_id"] for row in table.remove_columns("image")}) for name, table in splits.items()
    } == (SPLIT_SIZES)
    assert sum(map(len, splits.values())) == len(files.refs)
    assert all(table.features == REFERRING_FEATURES for table in splits.values())
    row = splits["compositional"][0]
    assert row["image"].mode == "RGB" and row["image"].size == (SIDE, SIDE)
    assert row["sentences"][0]["category"] in KINDS


PROGRAM = """
import sys
from m3dec.processing.referring_data.scenes import write_scenes
write_scenes(sys.argv[1], {"train": 12, "val": 4, "compositional": 6}, seed=5)
"""


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_processes_write_the_same_bytes(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tmp_path / name], env={**os.environ, "PYTHONHASHSEED": hash_seed}
        )
        for name, hash_seed in (("one", "1"), ("two", "2"))
    ]
    assert [process.wait() for process in processes] == [0, 0]
    first, second = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert len(first) == 24
    assert first == second


def test_an_image_depends_on_seed_split_and_place_only(tmp_path):
    few = digests(write_scenes(tmp_path / "few", {"val": 3}, seed=5))
    many = digests(write_scenes(tmp_path / "many", {"train": 2, "val": 5}, seed=5))
    other = digests(write_scenes(tmp_path / "other", {"train": 3, "val": 3}, seed=6))
    names = [f"images/scenes_val_{i:06d}.jpg" for i in range(3)]
    assert [few[name] for name in names] == [many[name] for name in names]
    images = [digest for name, digest in {**other, **many}.items() if name.startswith("images/")]
    assert not {other[name] for name in names} & {many[name] for name in names}
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("side", [96, 320])
def test_scenes_can_be_drawn_in_other_sizes(side):
    scene = draw_scene(seed=0, index=4, image_size=side)
    assert scene.image.size == (side, side)
    assert all(shape.mask.shape == (side, side) and shape.mask.any() for shape in scene.shapes)
    assert sorted(expression.kind for expression in scene.expressions) == sorted(KINDS)


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path, monkeypatch):
    write_scenes(tmp_path, {"val": 1})
    with pytest.raises(FileExistsError, match="Delete it"):
        write_scenes(tmp_path, {"val": 1})
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_scenes(tmp_path, {"val": 1}, dataset="more")
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize("sizes", [{}, {"val": -1}, {"val": 2.5}])
def test_impossible_split_sizes_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match="split_sizes"):
        write_scenes(tmp_path, sizes)


def test_an_image_too_small_to_see_anything_is_refused():
    with pytest.raises(ValueError, match="at least 96"):
        draw_scene(seed=0, image_size=64)
