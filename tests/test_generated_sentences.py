"""Sentences made from masks: true of exactly one thing, by an oracle that reads them and loops over pixels."""

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from m3dec.processing.referring_data import ReferringDataError, load_referring_dataset
from m3dec.processing.referring_data.generated import photographs, phrasing
from m3dec.processing.referring_data.generated.colors import COLORS, color_shares, sure_color
from m3dec.processing.referring_data.generated.mosaics import make_mosaic
from m3dec.processing.referring_data.generated.photographs import InstanceFile, Photograph, Thing, entries_of_lists
from m3dec.processing.referring_data.generated.rows import generate_referring_dataset, generate_rows, is_held_out
from m3dec.processing.referring_data.generated.sentences import KINDS, SentenceMaker
from m3dec.processing.referring_data.generated.truth import Scene
from m3dec.processing.referring_data.generated.words import CategoryWords, read_words, words_of
from m3dec.processing.referring_data.readers.images import ImageFolder
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.schema import REFERRING_FEATURES, decode_mask

HEIGHT, WIDTH = 60, 100
PALETTE = {  # one plain shade of each; no two are near each other
    "red": (200, 20, 30),
    "green": (30, 130, 50),
    "yellow": (245, 215, 40),
    "blue": (30, 70, 180),
    "white": (255, 255, 255),
}
OTHER_COLORS = set(
    [
        "black",
        "gray",
        "grey",
        "orange",
        "turquoise",
        "teal",
        "cyan",
        "purple",
        "violet",
        "pink",
        "brown",
        "beige",
        "tan",
        "cream",
    ]
)
BACKGROUND = (125, 128, 130)
CATEGORIES = ("box", "disk", "cone")


def photograph(rectangles, exhaustive=True, size=(HEIGHT, WIDTH)) -> Photograph:
    """A drawn photograph of rectangles (category, left, top, right, bottom, color, changes); later ones lie above."""
    image, number = np.full((*size, 3), BACKGROUND, np.uint8), np.zeros(size, int)
    for place, (_, left, top, right, bottom, color, _) in enumerate(rectangles, start=1):
        number[top:bottom, left:right] = place
        first, second, share = color if isinstance(color, tuple) else (color, color, 1.0)
        image[top:bottom, left:right] = PALETTE[second]
        image[top : top + round(share * (bottom - top)), left:right] = PALETTE[first]
    things = []
    for place, (category, *_, changes) in enumerate(rectangles, start=1):
        if (number == place).any():
            blank = Thing(place, category, 1, (0, 0, 0, 0), np.zeros((0, 0), bool))
            things.append(blank.with_mask(number == place, **changes))
    return Photograph(image, tuple(things), exhaustive, "drawn.png", 1)


def box(left, top, width, height, color="red", category="box", **changes):
    return (category, left, top, left + width, top + height, color, changes)


def sentences_of(drawn, count=30, seeds=3, words=None, categories=CATEGORIES):
    maker = SentenceMaker(words or {}, categories)
    return [one for seed in range(seeds) for one in maker.describe(drawn, random.Random(seed), count)]


@pytest.fixture(autouse=True, scope="module")
def plain_speech():
    """No requests, fillers and slips of the fingers: what the oracle reads is the claim."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REQUEST", "FILLER", "PRAISE", "SLIP"):
            patch.setattr(phrasing, name, 0.0)
        yield


# The oracle: reads a sentence by itself, and asks of every annotated thing, crowds too, whether it may be meant.

RELATIONS = {
    "left of": ("to the left of", "on the left side of", "on the left of", "left of"),
    "right of": ("to the right of", "on the right side of", "on the right of", "right of"),
    "above": ("above", "over", "higher than"),
    "below": ("underneath", "below", "under", "beneath", "lower than"),
    "next to": ("right next to", "next to", "beside", "close to", "near", "by", "alongside"),
    "in front of": ("in front of", "before"),
    "behind": ("in back of", "behind"),
}
ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5} | {
    f"{n}{end}": n for n, end in ((1, "st"), (2, "nd"), (3, "rd"), (4, "th"), (5, "th"))
}


PLURALS = {"boxes": "box", "disks": "disk", "cones": "cone"}


class Seen:
    """What the oracle sees of a thing, by loops over its pixels."""

    def __init__(self, drawn: Photograph, thing: Thing):
        self.thing, places = thing, []
        for y in range(HEIGHT):
            for x in range(WIDTH):
                left, top, right, bottom = thing.box
                if top <= y < bottom and left <= x < right and thing.mask[y - top, x - left]:
                    places.append((x, y))
        xs, ys = [x for x, _ in places], [y for _, y in places]
        self.left, self.right, self.top, self.bottom = min(xs), max(xs) + 1, min(ys), max(ys) + 1
        self.x, self.y, self.area = (self.left + self.right) / 2, (self.top + self.bottom) / 2, len(places)
        pixels = [tuple(int(v) for v in drawn.image[y, x]) for x, y in places]
        self.share = {name: pixels.count(rgb) / len(pixels) for name, rgb in PALETTE.items()}

    def gap(self, other) -> float:
        across = max(self.left - other.right, other.left - self.right, 0)
        down = max(self.top - other.bottom, other.top - self.bottom, 0)
        return math.hypot(across, down) / math.hypot(HEIGHT, WIDTH)


def may_hold(relation: str, one: Seen, other: Seen) -> bool:
    """Whether somebody may say it of the two: no margins, so that a rival that nearly fits counts."""
    return {
        "left of": one.x < other.x,
        "right of": one.x > other.x,
        "above": one.y < other.y,
        "below": one.y > other.y,
        "next to": one.gap(other) <= 0.12,
        "in front of": one.bottom > other.bottom and one.gap(other) <= 0.12,
        "behind": one.bottom < other.bottom and one.gap(other) <= 0.12,
    }[relation]


def meant(text: str, seen: list[Seen], noun: str | None = None) -> list[Seen]:
    """All things that a sentence may mean."""
    text = re.sub(
        r" of the (image|picture)", " side", re.sub(r"\b(boxes|disks|cones)\b", lambda m: PLURALS[m[0]], text)
    )
    if turned := re.fullmatch(r"((?:on|in|at|to) the .*?)(?:, | (?=the |that ))(.*)", text):
        text = f"{turned[2]} {turned[1]}"
    text = re.sub(r" that (is|are|has|have) ", " ", f" {text} ")
    ways = sorted(((way, name) for name, said in RELATIONS.items() for way in said), key=lambda p: -len(p[0]))
    for way, relation in ways:
        head, found, landmark = text.partition(f" {way} the ")
        if found:
            noun = next((word for word in (*CATEGORIES, "one") if f" {word} " in f" {head} "), None)
            places = meant(f"the {landmark}", seen, noun)
            assert len(places) == 1, f"the landmark of {text!r}"
            rivals = [s for s in meant(head, seen) if s is not places[0]]
            return [one for one in rivals if may_hold(relation, one, places[0])]
    words = text.split()
    named = next((word for word in words if word in CATEGORIES), noun)
    rivals = [one for one in seen if named in (None, "one", one.thing.category)]
    if set(words) & OTHER_COLORS:
        return []
    for color in PALETTE:
        if color in words:
            both = sum(name in words for name in PALETTE) == 2
            rivals = [one for one in rivals if one.share[color] > (0.06 if both else 0.15)]
    return extremes(text, words, rivals)


def extremes(text: str, words: list[str], rivals: list[Seen]) -> list[Seen]:
    """Those of the rivals that a place, an order or a size leaves.

    Of several such words one has to single out, and the others may only be true: "the biggest box on the left".
    """
    numbers = [ORDINALS[word] for word in words if word in ORDINALS]
    numbers += [int(n) for n in re.findall(r"number (\d)", text)] + [len(rivals)] * ("last" in words)
    counted = re.search(r"from (?:the )?(left|right|top|bottom)", text)
    if counted:
        order = sorted(rivals, key=SIDES[counted[1]])
        return order[numbers[0] - 1 : numbers[0]]
    if len(rivals) < 2:
        return rivals
    marked, plain = [], []  # of each word: which it singles out, and of which it is true
    half = re.search(r"\b(side|part)\b", text)
    for said, key, in_half in PLACES:
        if re.search(rf"\b({said})\b", text):
            marked += [one for one in rivals if key(one) == min(map(key, rivals))]
            plain += [in_half] * bool(half)
    for said, key in SIZES:
        if re.search(rf"\b({said})\b", text):
            outer = [one for one in rivals if key(one) == min(map(key, rivals))]
            marked += outer if len(outer) < len(rivals) else []  # of equals, a word only says what is true of all
            plain.append(lambda one, outer=outer: one in outer)
    if re.search(r"\b(middle|center|between)\b", text):
        middle = [sorted(rivals, key=SIDES["left"])[len(rivals) // 2]] * (len(rivals) % 2)
        marked += middle
        plain.append(lambda one: one in middle or abs(one.x - WIDTH / 2) < 0.08 * WIDTH)
    left = [one for one in rivals if one in marked and all(is_true(one) for is_true in plain)]
    return left if marked else rivals


SIDES = {"left": lambda s: s.x, "right": lambda s: -s.x, "top": lambda s: s.y, "bottom": lambda s: -s.y}
PLACES = (
    ("left|leftmost", SIDES["left"], lambda s: s.x < WIDTH / 2),
    ("right|rightmost", SIDES["right"], lambda s: s.x > WIDTH / 2),
    ("top|upper|topmost|highest|uppermost|up", SIDES["top"], lambda s: s.y < HEIGHT / 2),
    ("bottom|lower|lowest|bottommost|down", SIDES["bottom"], lambda s: s.y > HEIGHT / 2),
)
SIZES = (
    ("big|bigger|biggest|large|larger|largest", lambda s: -s.area),
    ("small|smaller|smallest|tiniest|little", lambda s: s.area),
    ("tall|taller|tallest", lambda s: s.top - s.bottom),
    ("in front|in the front|foreground|closest|nearest", lambda s: -s.bottom),
    ("background|farthest away|farthest from|farther|furthest away|further away|the back", lambda s: s.bottom),
)


colors = st.sampled_from(list(PALETTE))
mixed = st.tuples(colors, colors, st.sampled_from([0.3, 0.5, 0.54, 0.6, 0.9]))
rectangle = st.builds(
    box,
    st.integers(0, 80), st.integers(0, 45), st.integers(4, 40), st.integers(4, 40),
    st.one_of(colors, mixed), st.sampled_from(CATEGORIES),
)  # fmt: skip
crowd = st.builds(lambda b: (*b[:-1], {"crowd": True}), rectangle)
drawings = st.tuples(st.lists(rectangle, min_size=1, max_size=6), st.lists(crowd, max_size=1), st.booleans())


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawings, st.integers(0, 10**6))
def test_no_sentence_about_one_thing_fits_a_second_annotated_thing(drawing, seed):
    rectangles, crowds, exhaustive = drawing
    cut = [(c, x, y, min(r, WIDTH), min(b, HEIGHT), color, more) for c, x, y, r, b, color, more in rectangles + crowds]
    drawn = photograph(cut, exhaustive)
    kept = {thing.id for thing in Scene(drawn, {}).things} | {thing.id for thing in drawn.things if thing.crowd}
    seen = [Seen(drawn, thing) for thing in drawn.things if thing.id in kept]
    for sentence in SentenceMaker({}, CATEGORIES).describe(drawn, random.Random(seed), 16):
        if len(sentence.targets) == 1:
            found = [one.thing.id for one in meant(sentence.text, seen)]
            assert found == list(sentence.targets), f"{sentence}: {[(t.id, t.category, t.box) for t in drawn.things]}"


def test_the_oracle_finds_what_is_wrong():
    drawn = photograph([box(5, 5, 20, 20), box(60, 5, 20, 20), box(30, 40, 30, 10, "blue")])
    seen = [Seen(drawn, thing) for thing in drawn.things]
    ids = {text: [one.thing.id for one in meant(text, seen)] for text in ("the red box", "left red box", "blue box")}
    assert ids == {"the red box": [1, 2], "left red box": [1], "blue box": [3]}
    assert [one.thing.id for one in meant("the red box right of the blue one", seen)] == [2]
    assert [one.thing.id for one in meant("the box that is second from the left", seen)] == [3]


def said(drawn, pattern, **options) -> set[str]:
    return {one.text for one in sentences_of(drawn, **options) if re.search(pattern, one.text) and one.targets}


HORIZONTAL = r"\b(left|right|leftmost|rightmost|middle|between)\b"


def test_positions_within_7_percent_of_the_side_are_never_told_apart():
    near = photograph([box(40, 5, 20, 10), box(46, 35, 20, 10)])
    apart = photograph([box(40, 5, 20, 10), box(48, 35, 20, 10)])
    assert not said(near, HORIZONTAL, seeds=20)
    assert said(apart, HORIZONTAL, seeds=20)


def test_areas_within_1_6_times_are_never_bigger_or_smaller():
    size = r"\b(big|bigger|biggest|larger|largest|small|smaller|smallest|little|tallest|taller|tall)\b"
    near = photograph([box(5, 5, 20, 20), box(60, 5, 20, 31)])
    apart = photograph([box(5, 5, 20, 20), box(60, 5, 20, 33)])
    assert not {text for text in said(near, size, seeds=20) if "tall" not in text}
    assert said(apart, size, seeds=20)


def test_a_color_of_less_than_55_percent_is_never_said():
    for share, is_said in ((0.5, False), (0.6, True)):
        drawn = photograph([box(5, 5, 30, 40, ("red", "blue", share)), box(60, 5, 30, 40, "white")])
        texts = said(drawn, r"\bred\b", seeds=20)
        assert bool({text for text in texts if "red and blue" not in text and "blue and red" not in text}) == is_said


def test_where_not_everything_is_annotated_nothing_rests_on_there_being_one_of_a_few_small_things():
    small = photograph([box(5, 5, 8, 8), box(60, 40, 8, 8, "blue")], exhaustive=False)
    assert not [one for one in sentences_of(small) if one.targets]
    large = photograph([box(5, 5, 30, 30), box(60, 20, 30, 30, "blue")], exhaustive=False)
    texts = sentences_of(large, seeds=20)
    assert texts
    assert not {one.kind for one in texts} & {"only"}
    assert not [one for one in texts if re.search("small|second.*nothing", one.text) and one.targets]


def test_of_what_a_crowd_holds_more_of_no_single_one_is_told():
    drawn = photograph([box(5, 5, 20, 20), box(40, 5, 50, 20, crowd=True), box(40, 40, 20, 15, "blue", "disk")])
    told = [one for one in sentences_of(drawn, seeds=10) if one.targets]
    assert told
    assert all(one.targets == (3,) for one in told)


def test_absent_sentences_mean_no_pixel_and_name_nothing_that_is_there():
    drawn = photograph([box(5, 5, 30, 30), box(60, 20, 30, 30, "blue")])
    absent = [one for one in sentences_of(drawn, seeds=40) if one.kind == "nothing"]
    assert len({one.text for one in absent}) > 20
    seen = [Seen(drawn, thing) for thing in drawn.things]
    for one in absent:
        assert one.targets == ()
        if any(f" {word}" in one.text for word in ("disk", "cone")):
            continue  # another thing, or a box beside one that is not there
        assert meant(one.text, seen) == [], one.text


def test_a_thing_annotated_twice_is_one_thing():
    drawn = photograph([box(5, 5, 30, 30)])
    (thing,) = drawn.things
    again = thing.with_mask(thing.mask, *thing.box[:2], id=9)
    twice = Photograph(drawn.image, (thing, again), True, "drawn.png", 1)
    assert not [one for one in sentences_of(twice, seeds=10) if len(one.targets) > 1 or "two" in one.text]


def test_of_what_a_mosaic_cuts_in_half_no_single_one_is_told():
    drawn = photograph([box(0, 10, 100, 40), box(45, 0, 10, 10, "blue", "disk")])
    for seed in range(30):
        mosaic = make_mosaic(random.Random(seed), lambda: drawn, 7)
        cut = {thing.id for thing in mosaic.things if thing.crowd}
        boxes = [thing.id for thing in mosaic.things if thing.category == "box" and not thing.crowd]
        told = SentenceMaker({}, CATEGORIES).describe(mosaic, random.Random(seed), 12)
        assert not [one for one in told if cut & set(one.targets)]
        if cut:
            assert not [one for one in told if len(one.targets) == 1 and one.targets[0] in boxes]


def test_several_things_are_all_of_their_kind():
    drawn = photograph([box(5, 5, 20, 20), box(40, 5, 20, 20), box(70, 30, 25, 25, "blue", "disk")])
    several = {one.text: one.targets for one in sentences_of(drawn, seeds=20) if one.kind == "several"}
    assert several
    assert set(several.values()) == {(1, 2)}
    assert any(text.startswith("both") for text in several)


PERSONS = {
    "person": CategoryWords(("person",), women=("woman",), men=("man",), plural={"person": "people"}, color=False),
    "bag": CategoryWords(("bag",), carried=True),
    "dress": CategoryWords(("dress",), worn=True, tells="woman"),
}


def test_parts_are_told_by_their_owners_and_persons_by_what_they_wear_and_carry():
    drawn = photograph(
        [
            box(10, 5, 20, 50, "white", "person"), box(12, 20, 16, 20, "red", "dress", owner=1),
            box(60, 5, 20, 50, "white", "person"), box(62, 30, 10, 10, "blue", "bag", owner=3),
        ]
    )  # fmt: skip
    texts = sentences_of(drawn, seeds=40, words=PERSONS, categories=tuple(PERSONS))
    kinds = {kind: {(one.text, one.targets) for one in texts if one.kind == kind} for kind in KINDS}
    assert {targets for _, targets in kinds["clothes"]} == {(1,)}
    assert {targets for _, targets in kinds["carried"]} == {(3,)}
    assert {targets for _, targets in kinds["part"]} == {(2,), (4,)}
    assert all(targets == (1,) for text, targets in kinds["position"] | kinds["two properties"] if "woman" in text)


def test_a_pronoun_is_said_where_one_person_is_there():
    drawn = photograph([box(40, 5, 20, 50, "white", "person"), box(42, 20, 16, 20, "red", "dress", owner=1)])
    assert said(drawn, r"^her .*dress", seeds=40, words=PERSONS)


@pytest.mark.parametrize(
    ("rgb", "name"),
    {
        (0, 0, 0): "black", (255, 255, 255): "white", (128, 128, 128): "gray", (255, 0, 0): "red",
        (0, 128, 0): "green", (255, 255, 0): "yellow", (0, 0, 255): "blue", (255, 165, 0): "orange",
        (128, 0, 128): "purple", (255, 192, 203): "pink", (139, 69, 19): "brown", (210, 180, 140): "beige",
        (64, 224, 208): "turquoise", (0, 0, 128): "blue", (128, 0, 0): "red", (255, 105, 180): "pink",
    }.items(),
)  # fmt: skip
def test_flat_patches_of_named_colors_get_their_names(rgb, name):
    assert sure_color(color_shares(np.full((50, 3), rgb, np.uint8))) == name


@pytest.mark.parametrize(
    ("word", "plural"),
    {"cat": "cats", "box": "boxes", "bench": "benches", "puppy": "puppies", "toy": "toys", "bus": "buses"}.items(),
)
def test_plurals_follow_the_rules_of_english_spelling(word, plural):
    assert CategoryWords((word,)).plural_of(word) == plural


def test_plurals_of_the_file_come_before_the_rules_and_pairs_keep_their_form():
    words = read_words()
    assert words["person"].plural_of("woman") == "women"
    assert words["person"].plural_of("young woman") == "young women"
    assert words["knife"].plural_of("knife") == "knives"
    assert words["shoes"].plural_of("shoes") == "shoes"


def test_a_category_without_an_entry_is_its_own_word():
    assert words_of("Traffic_Cone", {}).words == ("traffic cone",)
    drawn = photograph([box(5, 5, 30, 30, category="traffic_cone")])
    assert said(drawn, "traffic cone")


def test_a_users_words_are_said_of_her_category(tmp_path):
    path = tmp_path / "words.yaml"
    path.write_text("box: {words: [crate, chest], also: [container], plural: {chest: chests}}\n")
    words = read_words(path)
    assert "cat" in words
    drawn = photograph([box(5, 5, 30, 30), box(60, 20, 30, 30, "blue")])
    texts = said(drawn, ".", words=words, seeds=10)
    assert any("crate" in text for text in texts)
    assert not any("box" in text for text in texts)


def test_the_pages_words_are_read(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "words.yaml").write_text(text, encoding="utf-8")
    words = read_words(tmp_path / "words.yaml")
    assert words["crate"].plural_of("box") == "boxes"
    assert words["safety vest"].worn


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("box: [crate]", "'box'.*no list `words`"),
        ("box: {also: [crate]}", "'box'.*no list `words`"),
        ("box: {words: crate}", "'box'.*its words is 'crate'"),
        ("box: {words: [crate], colour: false}", "'box'.*has colour, and known are"),
        ("box: {words: [crate], pair: 3}", "'box'.*its pair is 3"),
        ("box: {words: [crate], tells: dog}", "'box'.*its tells is 'dog'"),
        ("box: {words: [crate], shades: {red: crimson}}", "'box'.*its shades is"),
        ("- crate", "has none"),
        ("box: {words: [crate", "is not"),
    ],
)
def test_a_wrong_entry_of_the_words_is_named(text, problem, tmp_path):
    (tmp_path / "words.yaml").write_text(text)
    with pytest.raises(ReferringDataError, match=problem):
        read_words(tmp_path / "words.yaml")


def test_every_entry_of_the_packages_words_is_whole():
    for name, entry in read_words().items():
        assert len(set(entry.words)) == len(entry.words), name
        assert all(shade in COLORS for shade in entry.shades), name


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of thirty drawn photographs with an instance file: polygons, run lengths, names beyond ASCII."""
    root = tmp_path_factory.mktemp("instances")
    (root / "images").mkdir()
    draw, annotations, images = random.Random(0), [], []
    for number in range(30):
        drawn = photograph([random_box(draw) for _ in range(draw.randint(1, 5))])
        name = f"straße {number}.png" if number % 3 else f"plain_{number}.png"
        Image.fromarray(drawn.image).save(root / "images" / name)
        images.append({"id": 100 + number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for thing in drawn.things:
            entry = {"id": len(annotations) + 1, "image_id": 100 + number, "iscrowd": 0, "bbox": [0, 0, 1, 1]}
            entry |= {"category_id": 1 + CATEGORIES.index(thing.category), "segmentation": segmentation_of(thing)}
            annotations.append(entry)
    categories = [{"id": 1 + place, "name": name} for place, name in enumerate(CATEGORIES)]
    draw.shuffle(annotations)
    contents = {"info": {"numbers": [1, 2.5e3], "none": None}, "images": images, "annotations": annotations}
    text = json.dumps(contents | {"categories": categories}, ensure_ascii=False, indent=1)
    (root / "instances.json").write_text(text, encoding="utf-8")
    return root


def random_box(draw: random.Random):
    x, y, width, height = draw.randint(0, 75), draw.randint(0, 40), draw.randint(8, 24), draw.randint(8, 19)
    return box(x, y, width, height, draw.choice(list(PALETTE)), draw.choice(CATEGORIES))


def segmentation_of(thing: Thing):
    """By turns a polygon and run lengths of both kinds."""
    whole, (left, top, right, bottom) = thing.within((0, 0, WIDTH, HEIGHT)), thing.box
    if thing.id % 3 == 0:
        return [[left, top, right, top, right, bottom - 0.3, left + 0.7, bottom]]
    counts = coco_mask.encode(np.asfortranarray(whole, np.uint8))["counts"].decode()
    return {"size": [HEIGHT, WIDTH], "counts": counts if thing.id % 3 == 1 else uncompressed(whole)}


def uncompressed(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, by turns outside and on the mask."""
    values = mask.T.ravel().tolist()
    return [0] * values[0] + [len(list(run)) for _, run in itertools.groupby(values)]


def test_an_instance_file_is_read_as_pycocotools_reads_it(folder, monkeypatch):
    theirs, images = COCO(str(folder / "instances.json")), ImageFolder(folder / "images")
    for block in (2**22, 97):  # a window that holds all, and one that ends in the middle of everything
        monkeypatch.setattr(photographs, "BLOCK", block)
        file = InstanceFile(folder / "instances.json")
        assert len(file) == len(theirs.anns)
        assert list(file.images) == list(theirs.imgs)
        for image_id, image in theirs.imgs.items():
            drawn = file.photograph(image_id, images)
            assert drawn.file_name == image["file_name"]
            masks = {thing.id: thing.within((0, 0, WIDTH, HEIGHT)) for thing in drawn.things}
            expected = {one["id"]: theirs.annToMask(one).astype(bool) for one in theirs.imgToAnns[image_id]}
            assert {key: mask.tolist() for key, mask in masks.items()} == {k: m.tolist() for k, m in expected.items()}
            names = {one["id"]: theirs.cats[one["category_id"]]["name"] for one in theirs.imgToAnns[image_id]}
            assert {thing.id: thing.category for thing in drawn.things} == names


def test_escaped_and_plain_letters_beyond_ascii_are_the_same(tmp_path):
    for text in (r'{"images": [{"file_name": "stra\u00dfe"}]}', '{"images": [{"file_name": "straße"}]}'):
        path = tmp_path / "file.json"
        path.write_bytes(text.encode())
        with path.open("rb") as file:
            assert [entry for *_, entry in entries_of_lists(file, path)] == [{"file_name": "straße"}]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: len(text) // 2], "not whole JSON"),
        (lambda text: "[]", "'{' is expected"),
        (lambda text: text.replace('"images"', '"pictures"'), "0 images"),
        (lambda text: text.replace('"category_id"', '"category"'), "annotations has .*category_id"),
        (lambda text: text.replace('"image_id": 100', '"image_id": "100"'), "ids and sizes are whole numbers"),
        (lambda text: text.replace('"height"', '"tall"'), "images has .*height"),
        (lambda text: text.replace('"name"', '"title"'), "categories has .*name"),
    ],
)
def test_a_damaged_instance_file_is_refused_by_what_is_wrong(folder, change, problem, tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(change((folder / "instances.json").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ReferringDataError, match=problem):
        InstanceFile(path)


def test_an_annotation_of_an_unknown_category_is_named(folder, tmp_path):
    path = tmp_path / "instances.json"
    text = (folder / "instances.json").read_text(encoding="utf-8")
    path.write_text(re.sub(r'"category_id": 1\b', '"category_id": 77', text), encoding="utf-8")
    file, images = InstanceFile(path), ImageFolder(folder / "images")
    with pytest.raises(ReferringDataError, match=r"category is one of the file's, but annotation \d+ .* has 77"):
        for image_id in file.images:
            file.photograph(image_id, images)


def generated(folder, **options):
    return generate_referring_dataset(folder / "instances.json", folder / "images", **{"val_share": 0.3} | options)


@pytest.fixture(scope="module")
def splits(folder):
    return generated(folder, mosaics=10)


def test_rows_obey_the_schema_and_read_back_from_shards(splits, tmp_path):
    assert set(splits) == {"train", "val"}
    write_prepared(splits, tmp_path / "out", num_shards=2)
    again = load_referring_dataset("prepared", root=tmp_path / "out")
    for name, table in splits.items():
        assert table.features == REFERRING_FEATURES
        rows = {row["ref_id"]: row for row in table.remove_columns("image")}
        assert len(rows) == len(table)
        assert {row["ref_id"]: row for row in again[name].remove_columns("image")} == rows
        numbers = [one["sent_id"] for row in rows.values() for one in row["sentences"]]
        assert len(set(numbers)) == len(numbers)


def test_every_sentence_has_a_kind_and_only_nothing_has_an_empty_mask(splits):
    for table in splits.values():
        for row in table:
            mask = decode_mask(row["mask"])
            assert mask.shape == (row["height"], row["width"]) == row["image"].size[::-1]
            assert {one["category"] for one in row["sentences"]} <= set(KINDS)
            is_nothing = {one["category"] == "nothing" for one in row["sentences"]}
            assert is_nothing == {not mask.any()} == {not row["ann_id"]}
            assert all(len(one["raw"].split()) <= 18 for one in row["sentences"])


def test_val_photographs_are_never_seen_in_training_nor_in_its_mosaics(folder, monkeypatch):
    shown, original = set(), InstanceFile.photograph

    def noted(self, number, images):
        shown.add(number)
        return original(self, number, images)

    monkeypatch.setattr(InstanceFile, "photograph", noted)
    options = {"instances": str(folder / "instances.json"), "image_root": str(folder / "images"), "words": None}
    options |= {"sentences_per_image": 4, "val_share": 0.3, "seed": 0, "split": "train"}
    rows = list(generate_rows([(0, 60)], **options))
    assert sum(row["file_name"].startswith("mosaic") for row in rows) > 20
    names = {number: image["file_name"] for number, image in InstanceFile(folder / "instances.json").images.items()}
    held_out = {number for number, name in names.items() if is_held_out(name, 0.3)}
    assert held_out
    assert not shown & held_out


def test_a_photograph_is_held_out_by_its_own_name_wherever_it_lies():
    assert [is_held_out(f"{n}.jpg", 0.2) for n in range(99)] == [is_held_out(f"a/b/{n}.jpg", 0.2) for n in range(99)]
    assert 130 < sum(is_held_out(f"{n}.jpg", 0.2) for n in range(1000)) < 270


DIGEST = """
import hashlib, json, sys
from m3dec.processing.referring_data.generated.rows import generate_rows
options = {"words": None, "sentences_per_image": 8, "val_share": 0.3, "split": "train", "seed": int(sys.argv[2])}
rows = generate_rows([(0, 40)], sys.argv[1] + "/instances.json", sys.argv[1] + "/images", **options)
print(hashlib.sha256("".join(map(repr, rows)).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_two_processes_and_another_seed_others(folder):
    def digest(seed: int, hash_seed: str) -> str:
        command = [sys.executable, "-c", DIGEST, str(folder), str(seed)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout

    assert digest(0, "1") == digest(0, "2")
    assert digest(0, "1") != digest(1, "1")
