"""What is said of the shapes of a scene: six kinds of expressions, each of which means exactly one shape."""

import itertools
import math
import random
from dataclasses import dataclass

from .layout import ATTRIBUTES, Shape, is_reserved, number_of_differences

KINDS = ("attribute", "relation", "nearest", "superlative", "ordinal", "negation")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
CLEAR_GAP = 0.06  # of the image's side: an order that is told by less is not told at all
CLEAR_RATIO = 1.15  # a nearest shape is at least this much nearer than the next


@dataclass(frozen=True)
class Expression:
    """A sentence, the program it says, and the one shape of the scene that the program denotes."""

    kind: str
    sent: str
    raw: str
    program: tuple
    target: int


def readings(program: tuple, shapes: list[Shape], image_size: int) -> tuple[set[int], set[int]]:
    """What a program denotes: the shapes it surely means, and all those that someone might take it to mean.

    A program is `(kind, noun, …)`, a noun a dict of attributes:
    `("attribute", noun)`, `("negation", noun, attribute, value)`, `("relation", noun, direction, anchor noun)`,
    `("nearest", noun, "nearest" or "farthest", anchor noun)`, `("superlative", noun, direction)` and
    `("ordinal", noun, direction, n)`, the n-th from that side. An expression is unambiguous where both sets are equal
    and have one member.
    """
    kind, noun, *arguments = program
    named = denoted(noun, shapes)
    if kind == "attribute":
        return named, named
    if kind == "negation":
        attribute, value = arguments
        remaining = {i for i in named if shapes[i].attributes[attribute] != value}
        return remaining, remaining
    if kind in ("superlative", "ordinal"):
        direction, rank = arguments if kind == "ordinal" else (*arguments, 1)
        return nth_from_side(named, DIRECTIONS[direction], rank, shapes, image_size)
    anchors = denoted(arguments[1], shapes)
    if len(anchors) != 1:
        return set(), named
    (anchor,) = anchors
    if kind == "relation":
        return beside(named - anchors, DIRECTIONS[arguments[0]], shapes[anchor], shapes, image_size)
    return nearest_to(named - anchors, arguments[0] == "farthest", shapes[anchor], shapes, image_size)


def denoted(noun: dict[str, str], shapes: list[Shape]) -> set[int]:
    return {i for i, s in enumerate(shapes) if all(s.attributes[name] == value for name, value in noun.items())}


def beside(named, direction, anchor, shapes, image_size) -> tuple[set[int], set[int]]:
    """Surely: well to that side and more so than up or down. Possibly: to that side at all."""
    (dx, dy), (x0, y0) = direction, anchor.position
    surely, possibly = set(), set()
    for i in named:
        x, y = shapes[i].position[0] - x0, shapes[i].position[1] - y0
        along, across = x * dx + y * dy, abs(x * dy) + abs(y * dx)
        if along > 0:
            possibly.add(i)
        if along >= CLEAR_GAP * image_size and along >= across:
            surely.add(i)
    return surely, possibly


def nearest_to(named, farthest, anchor, shapes, image_size) -> tuple[set[int], set[int]]:
    """The gap also exceeds what the radii differ by, so measuring from edge to edge gives the same answer."""
    order = sorted((math.dist(shapes[i].position, anchor.position), i) for i in named)
    if farthest:
        order.reverse()
    if len(order) < 2:
        return set(), set(named)
    near, far = sorted((order[0][0], order[1][0]))
    clear = far >= CLEAR_RATIO * near and far - near >= CLEAR_GAP * image_size
    first = {order[0][1]}
    return (first, first) if clear else (set(), first | {order[1][1]})


def nth_from_side(named, direction, rank, shapes, image_size) -> tuple[set[int], set[int]]:
    """The n-th shape from a side, if its place differs clearly from its neighbors' in that order."""
    dx, dy = direction
    order = sorted((-shapes[i].position[0] * dx - shapes[i].position[1] * dy, i) for i in named)
    if rank > len(order):
        return set(), set()
    place, chosen = order[rank - 1]
    neighbors = order[max(rank - 2, 0) : rank - 1] + order[rank : rank + 1]
    rivals = {i for p, i in neighbors if abs(p - place) < CLEAR_GAP * image_size}
    return (set() if rivals else {chosen}), rivals | {chosen}


def describe(rng: random.Random, shapes: list[Shape], image_size: int, compositional: bool) -> list[Expression] | None:
    """One expression of each kind, spread over the shapes, at most three for one; None where a kind is impossible."""
    targets = [i for i, s in enumerate(shapes) if not compositional or is_reserved(s.attributes)]
    times_used = dict.fromkeys(targets, 0)
    nouns = [possible_nouns(rng, shape, shapes) for shape in shapes]
    expressions = []
    for kind in rng.sample(KINDS, len(KINDS)):
        free = sorted((i for i in targets if times_used[i] < 3), key=lambda i: times_used[i] + rng.random())
        found = next(filter(None, (find_expression(rng, kind, i, nouns, shapes, image_size) for i in free)), None)
        if found is None:
            return None
        times_used[found.target] += 1
        expressions.append(found)
    return expressions


def possible_nouns(rng, shape: Shape, shapes: list[Shape]) -> list[tuple[dict[str, str], set[int]]]:
    """Descriptions of a shape by up to four of its attributes and what each denotes, mostly the short ones first."""
    nouns = []
    for length in range(5):
        for names in itertools.combinations(ATTRIBUTES, length):
            rarely_said = (shape.attributes["fill"] == "solid" and "fill" in names) + (
                shape.attributes["texture"] == "plain" and "texture" in names
            )
            effort = length + rarely_said + 1.7 * ("shape" not in names) + 2.5 * rng.random()
            nouns.append((effort, len(nouns), {name: shape.attributes[name] for name in names}))
    return [(noun, denoted(noun, shapes)) for _, _, noun in sorted(nouns, key=lambda n: n[:2])]


def find_expression(rng, kind, target, nouns, shapes, image_size) -> Expression | None:
    """The first program of this kind that means `target` without doubt, said in 2 to 15 words."""
    for program in propose(rng, kind, target, nouns, shapes):
        surely, possibly = readings(program, shapes, image_size)
        if surely == possibly == {target}:
            sent = say(rng, program)
            if 2 <= len(sent.split()) <= 15:
                return Expression(kind, sent, as_typed(rng, sent), program, target)
    return None


def propose(rng, kind: str, target: int, nouns, shapes: list[Shape]):
    """Programs of one kind which may mean `target`, and which cannot be answered by a part of their words."""
    attributes = shapes[target].attributes
    differences = [number_of_differences(attributes, other.attributes) for other in shapes]
    sides = rng.sample(sorted(DIRECTIONS), 4)
    if kind == "attribute":
        if 1 in differences:
            yield from (("attribute", noun) for noun, named in nouns[target] if len(named) == 1)
    elif kind == "negation":
        # A twin which differs only in what is denied.
        twins = [other.attributes for other, n in zip(shapes, differences, strict=True) if n == 1]
        denied = [(a, t[a]) for t in twins for a in ATTRIBUTES if t[a] != attributes[a] and t[a] != "plain"]
        for noun, named in nouns[target]:
            if len(named) > 1:
                yield from (("negation", noun, *pair) for pair in denied if pair[0] not in noun)
    elif kind == "superlative":
        yield from (("superlative", noun, side) for noun, named in nouns[target] if len(named) > 1 for side in sides)
    elif kind == "ordinal":
        last = rng.random() < 0.35  # the last of a row could be told without counting
        for noun, named in nouns[target]:
            for side in sides if len(named) > 2 else ():
                yield from (("ordinal", noun, side, rank) for rank in range(2, min(5, len(named) + last)))
    else:
        anchors = [next((n for n, named in nouns[i] if named == {i}), None) for i in range(len(shapes)) if i != target]
        anchors = rng.sample([noun for noun in anchors if noun], sum(map(bool, anchors)))
        words = sides if kind == "relation" else rng.sample(("nearest", "nearest", "farthest"), 3)
        for noun, named in nouns[target]:
            for anchor in anchors if len(named) > 1 else ():
                if len(named - denoted(anchor, shapes)) > 1:
                    yield from ((kind, noun, word, anchor) for word in words)


# The first word of each list is the commonest.
SYNONYMS = {
    "moon": ("moon", "crescent"),
    "circle": ("circle", "disk"),
    "cross": ("cross", "plus"),
    "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "solid": ("filled",),
    "outlined": ("outlined", "hollow"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
}
ANYTHING = ("thing", "object", "shape")
BESIDE = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "top": ("above", "over", "higher than"),
    "bottom": ("below", "under", "beneath"),
}
DISTANCES = {
    "nearest": ("nearest to", "closest to", "nearest"),
    "farthest": ("farthest from", "furthest from", "farthest away from"),
}
MOST = {
    "left": ("leftmost", "furthest left", "farthest to the left"),
    "right": ("rightmost", "furthest right", "farthest to the right"),
    "top": ("topmost", "highest", "uppermost", "nearest the top"),
    "bottom": ("lowest", "furthest down", "nearest the bottom"),
}
RANKS = {2: "second", 3: "third", 4: "fourth"}


def say(rng: random.Random, program: tuple) -> str:
    """One way to say a program in English, in lower case."""
    kind, noun, *arguments = program
    words = noun_phrase(rng, noun)
    that_is = rng.choice(("", "", "that is ", "which is "))
    if kind == "attribute":
        return words if noun and rng.random() < 0.25 and " " in words else f"the {words}"
    if kind == "negation":
        attribute, value = arguments
        article = "a " if attribute == "shape" else ""
        return f"the {words} {that_is or 'that is '}not {article}{word_for(rng, value)}"
    if kind == "superlative":
        most = rng.choice(MOST[arguments[0]])
        return f"the {words} {that_is}{most}" if " " in most else f"the {most} {words}"
    if kind == "ordinal":
        side, rank = arguments
        if that_is:
            return f"the {words} {that_is}{RANKS[rank]} from the {side}"
        return f"the {RANKS[rank]} {words} from the {side}"
    phrases = BESIDE if kind == "relation" else DISTANCES
    return f"the {words} {that_is}{rng.choice(phrases[arguments[0]])} the {noun_phrase(rng, arguments[1])}"


def noun_phrase(rng: random.Random, noun: dict[str, str]) -> str:
    """Adjectives in the order people use, then the shape's name: "small striped red star"."""
    order = ("size", "fill", "texture", "colour") if rng.random() < 0.75 else ("size", "colour", "fill", "texture")
    words = [word_for(rng, noun[name]) for name in order if name in noun]
    return " ".join([*words, word_for(rng, noun["shape"]) if "shape" in noun else rng.choice(ANYTHING)])


def word_for(rng: random.Random, value: str) -> str:
    words = SYNONYMS.get(value, (value,))
    return words[0] if rng.random() < 0.5 else rng.choice(words)


def as_typed(rng: random.Random, sent: str) -> str:
    """The sentence as a person may have typed it."""
    typed = sent.capitalize() if rng.random() < 0.4 else sent
    return typed + rng.choice(("", "", "."))
