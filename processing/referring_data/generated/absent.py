"""What is not there: noun phrases that nothing in the image answers to, made of words that nearly fit."""

import random
from dataclasses import replace

from .colors import COLORS
from .photographs import Thing
from .phrasing import NounPhrase
from .properties import ORDINALS, RELATIONS, SIDES, color_word, leftmost, noun, person_of, wearing, where
from .truth import Scene
from .words import CategoryWords, words_of


def absent(scene: Scene, thing: Thing, categories: list[str], draw: random.Random) -> NounPhrase | None:
    """Another category, a noun of a wrong color, the third of two, clothes that nobody wears, a neighbor not there.

    Args:
        scene: of the image.
        thing: that something near is said of.
        categories: all that the file annotates; where the image is exhaustive, those that it lacks are not there.
        draw: decides.
    """
    ways = [absent_category, absent_category, absent_color, absent_ordinal, absent_clothes, absent_neighbor]
    return draw.choice(ways)(scene, thing, categories, draw)


def absent_category(scene: Scene, thing: Thing, categories: list[str], draw: random.Random) -> NounPhrase | None:
    entry = _missing_entry(scene, categories, draw)
    if entry is None:
        return None
    phrase, dice = NounPhrase(draw.choice(entry.words), plural=entry.pair), draw.random()
    if dice < 0.25:
        phrase = phrase.with_after(where(draw.choice(SIDES[:2]), draw))
    elif dice < 0.4 and not (entry.stuff or entry.pair):
        phrase = phrase.with_before(draw.choice((*leftmost(draw.choice(SIDES)), "biggest", "small", "second")))
    if entry.color and draw.random() < 0.3:
        phrase = replace(phrase, color=color_word(draw.choice(COLORS), entry, draw))
    return phrase


def absent_color(scene: Scene, thing: Thing, categories: list[str], draw: random.Random) -> NounPhrase | None:
    meaning, color = noun(scene, thing, draw), draw.choice(COLORS)
    if not meaning or not scene.entry(thing).color or not scene.photograph.exhaustive or scene.photograph.is_dark:
        return None
    if any(scene.colored(color)(other) is not False for other in meaning.rivals):
        return None
    phrase = replace(meaning.phrase, color=color_word(color, scene.entry(thing), draw))
    return phrase.with_after(where(draw.choice(SIDES[:2]), draw)) if draw.random() < 0.2 else phrase


def absent_ordinal(scene: Scene, thing: Thing, categories: list[str], draw: random.Random) -> NounPhrase | None:
    meaning, entry = noun(scene, thing, draw), scene.entry(thing)
    if not meaning or entry.stuff or entry.pair or thing.region or not scene.photograph.exhaustive:
        return None
    number = len(meaning.rivals) + draw.choice((0, 0, 1))
    if number >= len(ORDINALS):
        return None
    return meaning.phrase.with_before(ORDINALS[number]).with_after(f"from the {draw.choice(SIDES[:2])}")


def absent_clothes(scene: Scene, thing: Thing, categories: list[str], draw: random.Random) -> NounPhrase | None:
    """A person with what no person in the image wears or carries."""
    person = person_of(scene, thing)
    if person is None or not scene.parts or not scene.photograph.exhaustive:
        return None
    entry = scene.known.get(draw.choice(categories))
    if entry is None or not (entry.worn or entry.carried):
        return None
    meaning, word = noun(scene, person, draw), draw.choice(entry.words)
    color = draw.choice(COLORS) if entry.color and draw.random() < 0.5 else None
    related = entry.possible
    parts = [part for parts in scene.parts.values() for part in parts if related & scene.entry(part).possible]
    if meaning is None or (parts and (color is None or scene.photograph.is_dark)):
        return None
    if any(scene.colored(color)(part) is not False for part in parts):
        return None
    said = f"{color_word(color, entry, draw)} {word}" if color else word
    return meaning.phrase.with_after(wearing(said, entry, draw))


def absent_neighbor(scene: Scene, thing: Thing, categories: list[str], draw: random.Random) -> NounPhrase | None:
    """A thing that is there, next to one that is not."""
    entry = _missing_entry(scene, categories, draw)
    if entry is None or entry.worn or thing.owner is not None or scene.entry(thing).stuff:
        return None
    meaning, name = noun(scene, thing, draw), draw.choice(("left of", "right of", "next to", "next to", "above"))
    if meaning is None:
        return None
    if entry.holds and draw.random() < 0.5:
        name = "on"
    phrase = replace(meaning.phrase, praise=())
    return phrase.with_after(f"{draw.choice(RELATIONS[name][0])} the {draw.choice(entry.words)}")


def _missing_entry(scene: Scene, categories: list[str], draw: random.Random) -> CategoryWords | None:
    """The words of a category that is surely not in the image; None where the one that was drawn may be."""
    annotated = categories if scene.photograph.exhaustive else []
    names = annotated if annotated and (draw.random() < 0.6 or not scene.known) else list(scene.known)
    if not names:
        return None
    name = draw.choice(names)
    entry = words_of(name, scene.known)
    if entry.seldom or (name not in annotated and not entry.rare):
        return None
    there = [scene.entry(thing) for thing in scene.photograph.things]
    # The "vehicle" that is there may be the truck that is asked for.
    near = any(entry.general & one.possible or entry.possible & set(one.words) for one in there)
    return None if near else entry
