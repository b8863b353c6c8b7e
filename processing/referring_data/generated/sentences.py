"""Sentences about a photograph, made from its masks: each is true of exactly the things that it is given for."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from .absent import absent
from .photographs import Photograph, Thing
from .phrasing import NounPhrase, spoken
from .properties import (
    Meaning,
    alone_word,
    carrying,
    colored,
    counted,
    dressed,
    extreme,
    looks_big,
    noun,
    person_of,
    placed,
    related,
    riding,
    sized,
)
from .truth import Scene
from .words import CategoryWords

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
MOST_SEVERAL = 8  # of more, some are overlooked
MOST_WORDS = 18
MOST_FAILED = 40  # tries, one after the other: then there is not much more to say
MOST_ALIKE = 2  # sentences of one kind about the same
NOTHING = 1 / 8  # of the sentences name what is not there
PAIRS = (  # of properties that are said together, in this order
    (colored, extreme), (colored, extreme), (colored, placed), (colored, counted), (colored, sized), (extreme, dressed),
    (placed, dressed), (dressed, extreme), (dressed, placed), (carrying, extreme), (extreme, carrying),
    (placed, carrying), (dressed, dressed), (dressed, carrying), (looks_big, placed), (looks_big, colored),
    (colored, related), (sized, placed),
)  # fmt: skip

Said = tuple[NounPhrase, Sequence[Thing]]  # what is said, and of which things


class Sentence(NamedTuple):
    """What is said, of which kind it is, and the ids of the things that it means: none, one or several."""

    text: str
    kind: str
    targets: tuple[int, ...]


class SentenceMaker:
    """Makes sentences about photographs.

    Args:
        words: category → its words, of `read_words`.
        categories: all that the file annotates; where an image is exhaustive, those that it lacks are not there.
    """

    def __init__(self, words: dict[str, CategoryWords], categories: Sequence[str] = ()):
        self.words, self.categories = words, sorted(set(categories))

    def describe(self, photograph: Photograph, draw: random.Random, count: int) -> list[Sentence]:
        """Up to `count` different sentences, of kinds and things as mixed as the photograph allows."""
        scene = Scene(photograph, self.words)
        by_category = {}
        for thing in scene.things:
            if scene.is_large_enough(thing) and (not scene.entry(thing).seldom or draw.random() < 0.25):
                by_category.setdefault(thing.category, []).append(thing)
        if not by_category:
            return []
        found, made, failed = {}, dict.fromkeys(KINDS, 0), 0
        while len(found) < count and failed < MOST_FAILED:
            failed += 1
            kind = self._next_kind(made, sum(one.kind == "nothing" for one in found.values()), len(found), draw)
            thing = draw.choice(by_category[draw.choice(list(by_category))])
            said = self.nothing(scene, thing, draw) if kind == "nothing" else KINDS[kind][0](scene, thing, draw)
            if said is None:
                made[kind] += 0.1  # what fails often is tried less often
                continue
            made[kind] += 1
            phrase, targets = said
            text = spoken(phrase, draw)
            sentence = Sentence(text, kind, tuple(sorted(target.id for target in targets)))
            alike = sum(other[1:] == sentence[1:] for other in found.values())
            if text not in found and len(text.split()) <= MOST_WORDS and (alike < MOST_ALIKE or kind == "nothing"):
                found[text], failed = sentence, 0
        return list(found.values())

    def _next_kind(self, made: dict[str, float], absent: int, found: int, draw: random.Random) -> str:
        """What is tried next: of the kinds that were made least, and now and then what is not there."""
        if absent + 1 <= NOTHING * (found + 4) and draw.random() < 0.4:
            return "nothing"
        kinds = [kind for kind in KINDS if kind != "nothing"]
        return draw.choices(kinds, [KINDS[kind][1] / (1 + made[kind]) for kind in kinds])[0]

    def nothing(self, scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
        """What is not there."""
        phrase = absent(scene, thing, self.categories, draw)
        return phrase and (phrase, ())


# Each kind: what is said and which things it means, or None where it cannot be said


def by_category(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    often = 0.6 if scene.entry(thing).women else 0.25
    alone = alone_word(scene, thing, draw) if draw.random() < often else None
    return _single(alone or noun(scene, thing, draw), thing)


def by(way: Callable) -> Callable[[Scene, Thing, random.Random], Said | None]:
    """A noun and one property, `way`, that tells a thing."""
    return lambda scene, thing, draw: _single(way(scene, noun(scene, thing, draw), thing, draw), thing)


def by_position(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    meaning = noun(scene, thing, draw)
    way = placed if meaning and meaning.only(thing) else extreme
    return _single(way(scene, meaning, thing, draw), thing)


def by_size(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    return _single(sized(scene, noun(scene, thing, draw, largest=True), thing, draw), thing)


def by_two(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    """Two properties at once, now and then three. The first need not tell the thing alone, and the next may only be
    true."""
    first, second = draw.choice(PAIRS)
    meaning = first(scene, noun(scene, thing, draw), thing, draw)
    meaning = meaning and second(scene, meaning, thing, draw)
    if meaning and draw.random() < 0.2 and second not in (placed, related) and not meaning.phrase.before:
        # Behind "second" or "middle" a further adjective would be read as one of those that are counted.
        third = looks_big if {first, second} & {placed, extreme} else draw.choice((placed, looks_big))
        meaning = third(scene, meaning, thing, draw) or meaning
    return _single(meaning, thing)


def person_by(way: Callable) -> Callable[[Scene, Thing, random.Random], Said | None]:
    """The same of the person whose part a thing is."""

    def say(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
        person = person_of(scene, thing)
        return person and by(way)(scene, person, draw)

    return say


def by_owner(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    """A part by whose it is: "the shoes of the man on the left", "the left woman's bag", "her bag"."""
    owner = scene.by_id.get(thing.owner)
    part = owner and noun(scene, thing, draw)
    if not part or any(other is not thing and other.owner == owner.id for other in part.rivals):
        return None
    if draw.random() < 0.4:
        part = replace(part, phrase=(colored(scene, part, thing, draw) or part).phrase)
    persons = noun(scene, owner, draw)
    if persons is None:
        return None
    if len(persons.rivals) > 1:
        way = draw.choice([extreme, extreme, counted, dressed, sized])
        persons = way(scene, persons, owner, draw)
    if persons is None or not persons.only(owner):
        return None
    phrase, whose, entry = part.phrase, persons.phrase, scene.entry(thing)
    if whose.is_bare and draw.random() < 0.4 and all(other.owner == owner.id for other in scene.things if other.owner):
        sexes = scene.told_sex(owner)
        pronoun = {"woman": "her", "man": "his"}[sexes.pop()] if len(sexes) == 1 else "their"
        return replace(phrase, article=pronoun), (thing,)
    if not whose.after and draw.random() < 0.5:
        return replace(phrase, article="", before=(f"{whose.said('the')}'s", *phrase.before)), (thing,)
    they = whose.said("the")
    if entry.worn and draw.random() < 0.5:
        return phrase.with_after(draw.choice((f"that {they} is wearing", f"worn by {they}", f"on {they}"))), (thing,)
    if entry.carried and draw.random() < 0.5:
        ways = (f"that {they} is carrying", f"carried by {they}", f"that {they} has", f"{they} is holding")
        return phrase.with_after(draw.choice(ways)), (thing,)
    return phrase.with_after(f"of {they}"), (thing,)


def by_only(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    meaning = noun(scene, thing, draw)
    if meaning and draw.random() < 0.5:
        meaning = colored(scene, meaning, thing, draw)
    if not meaning or not meaning.only(thing) or not scene.photograph.exhaustive:
        return None
    if meaning.phrase.noun in scene.entry(thing).also:
        return None  # the only creature: a file annotates some animals, and rarely all that there are
    return replace(meaning.phrase, article="the", before=("only", *meaning.phrase.before)), (thing,)


def by_relation(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    meaning = noun(scene, thing, draw)
    way = riding if draw.random() < 0.3 and scene.entry(thing).women else related
    return _single(way(scene, meaning, thing, draw), thing)


def several(scene: Scene, thing: Thing, draw: random.Random) -> Said | None:
    """All of a kind: "both dogs", "all the white cups", "the two cats on the left"."""
    entry = scene.entry(thing)
    word = draw.choice(entry.words)
    things = scene.meant_by(word)
    sure = all(word in scene.entry(other).general and scene.is_large_enough(other) for other in things)
    if entry.stuff or entry.pair or not 2 <= len(things) <= MOST_SEVERAL or not sure or not scene.trusted(word):
        return None
    meaning = Meaning(NounPhrase(entry.plural_of(word), plural=True), tuple(things))
    if draw.random() < 0.4:
        meaning = colored(scene, meaning, thing, draw)
    if not meaning or meaning.unsure or len(meaning.things) < 2:
        return None
    things, number, phrase = meaning.things, len(meaning.things), meaning.phrase
    order = scene.in_order(things, side) if (side := draw.choice(("left", "right"))) else None
    if number > 2 and order and draw.random() < 0.5:
        few = draw.choice([n for n in (2, 3) if n < number])
        if draw.random() < 0.5:
            return replace(phrase.with_after(f"on the {side}"), before=(NUMBERS[few], *phrase.before)), order[:few]
        return replace(phrase, before=(f"{NUMBERS[few]} {side}most", *phrase.before)), order[:few]
    heads = ["both", "both", "both of the", "the pair of", "the two", "the", "both the"]
    if number > 2:
        heads = ["all", "all the", "all of the", "every one of the", "the", "the group of"]
        heads += [f"the {NUMBERS[number]}", f"all {NUMBERS[number]}"] * 2 if number in NUMBERS else []
    return replace(phrase, article=draw.choice(heads)), things


def _single(meaning: Meaning | None, thing: Thing) -> Said | None:
    return (meaning.phrase, (thing,)) if meaning and meaning.only(thing) else None


KINDS: dict[str, tuple[Callable | None, float]] = {  # kind → (how it is made, how often it is tried)
    "category": (by_category, 1.2),
    "color": (by(colored), 1.6),
    "position": (by_position, 2.0),
    "ordinal": (by(counted), 1.5),
    "superlative": (by_size, 1.2),
    "two properties": (by_two, 3.0),
    "clothes": (person_by(dressed), 1.6),
    "carried": (person_by(carrying), 1.6),
    "part": (by_owner, 1.6),
    "only": (by_only, 0.25),
    "relation": (by_relation, 3.0),
    "several": (several, 1.0),
    "nothing": (None, 0.0),  # its share is NOTHING
}
