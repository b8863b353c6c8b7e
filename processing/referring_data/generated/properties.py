"""Properties that narrow down what a noun phrase means. Each is true of its thing, and maybe of other things too."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from .colors import SPOKEN, has_both, sure_color, sure_pairs
from .photographs import Thing
from .phrasing import NounPhrase
from .truth import LARGER, MOST_RIVALS, TALLER, Scene
from .words import CategoryWords

ORDINALS = ("first", "second", "third", "fourth", "fifth")
SHORT_ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")
CLOTHES_COLORS = ("black", "white", "red", "blue", "green", "yellow", "purple")  # that skin and hair do not have
SIDES = ("left", "right", "top", "bottom")
HYPERNYM, ONE = 0.1, 0.08  # how often a wider word is said, or "one"
WRONG_WORDS = {  # of a person whose clothes tell
    "woman": ("man", "guy", "boy", "dude", "gentleman"),
    "man": ("woman", "lady", "girl"),
}


@dataclass(frozen=True)
class Meaning:
    """A noun phrase in the making, and the things that it is true of. `unsure` things might be meant too."""

    phrase: NounPhrase
    things: tuple[Thing, ...]
    unsure: tuple[Thing, ...] = ()

    @property
    def rivals(self) -> tuple[Thing, ...]:
        """All that may be meant."""
        return self.things + self.unsure

    def only(self, thing: Thing) -> bool:
        return self.things == (thing,) and not self.unsure

    def narrowed(self, test: Callable[[Thing], bool | None], phrase: NounPhrase) -> "Meaning":
        """What is left where a property is added, of which `test` says yes, no, or not sure (None)."""
        answers = {other.id: test(other) for other in self.rivals}
        things = tuple(other for other in self.things if answers[other.id])
        unsure = tuple(other for other in self.things if answers[other.id] is None)
        unsure += tuple(other for other in self.unsure if answers[other.id] is not False)
        return Meaning(phrase, things, unsure)

    def told(self, thing: Thing, phrase: NounPhrase) -> "Meaning":
        """What is left where a property is added that only one has."""
        return Meaning(phrase, (thing,))


# Nouns


def noun(scene: Scene, thing: Thing, draw: random.Random, largest: bool = False) -> Meaning | None:
    """A noun for a thing, and all that it may mean; None where something it may mean is not annotated.

    With `largest`, the biggest of an image may have rivals that are not annotated, if it is big itself.
    """
    if draw.random() < ONE and scene.are_alike(thing):
        return Meaning(NounPhrase("one", article="the"), tuple(scene.wholes))
    entry = scene.entry(thing)
    words = entry.also if entry.also and draw.random() < HYPERNYM else entry.words
    word = draw.choices(words, [1 / place for place in range(1, len(words) + 1)])[0]  # the usual ones more often
    things = scene.meant_by(word)
    if not scene.trusted(word) and not (largest and scene.is_plainly_largest(thing, word)):
        return None
    if not largest and len(things) > MOST_RIVALS * 3:
        return None
    phrase = NounPhrase(_said_of(scene, thing, word, draw), plural=entry.pair, praise=_praise(entry))
    sure = tuple(other for other in things if word in scene.entry(other).general)
    return Meaning(phrase, sure, tuple(other for other in things if word not in scene.entry(other).general))


def alone_word(scene: Scene, thing: Thing, draw: random.Random) -> Meaning | None:
    """A word that may be wrong of some things of the category, where no other thing could be meant by it."""
    entry = scene.entry(thing)
    if not entry.alone:
        return None
    word = draw.choice(entry.alone)
    if any(word in WRONG_WORDS[sex] for sex in scene.told_sex(thing)):
        return None
    rivals = [other for name in (*entry.words, word) for other in scene.meant_by(name) if other is not thing]
    if rivals or not all(map(scene.trusted, entry.words)):
        return None
    article = "" if word.startswith("some") else None  # somebody
    return Meaning(NounPhrase(word, article, plural=entry.pair), (thing,))


def person_of(scene: Scene, thing: Thing) -> Thing | None:
    """The thing if it is a person, or the person whose part it is."""
    thing = scene.by_id.get(thing.owner, thing)
    return thing if scene.entry(thing).women else None


def _is_noun_of_all(scene: Scene, meaning: Meaning) -> bool:
    """Whether the noun surely is right of all that may be meant, so that they can be counted."""
    word = meaning.phrase.noun
    for thing in meaning.rivals:
        entry, sexes = scene.entry(thing), scene.told_sex(thing)
        right = word == "one" or word in entry.general
        right |= (sexes == {"woman"} and word in entry.women) or (sexes == {"man"} and word in entry.men)
        if not right or entry.stuff:
            return False
    return not meaning.unsure


def _said_of(scene: Scene, thing: Thing, word: str, draw: random.Random) -> str:
    """The word, or one for a woman or a man where what the person wears tells it."""
    entry, sexes = scene.entry(thing), scene.told_sex(thing)
    if entry.women and len(sexes) == 1 and draw.random() < 0.5:
        return draw.choice(entry.women if sexes == {"woman"} else entry.men)
    return word


def _praise(entry: CategoryWords) -> tuple[str, ...]:
    """Adjectives that say nothing."""
    if "animal" in entry.also:
        return ("cute", "sweet", "lovely", "happy", "funny")
    if entry.worn or entry.carried:
        return ("nice", "pretty", "stylish", "fancy")
    return ("nice",)


# Colors and sizes


def colored(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """The white cat, the black and white cat."""
    if meaning is None or not scene.entry(thing).color or meaning.phrase.color or scene.photograph.is_dark:
        return None
    entry, shares = scene.entry(thing), scene.photograph.shares(thing)
    color, pairs = sure_color(shares), sure_pairs(shares)
    if pairs and (color is None or draw.random() < 0.6):
        first, second = draw.sample(pairs[0], 2)
        said = f"{color_word(first, entry, draw)} and {color_word(second, entry, draw)}"
        phrase = replace(meaning.phrase, color=said)
        return meaning.narrowed(lambda other: has_both(scene.photograph.shares(other), first, second), phrase)
    if color is None:
        return None
    phrase = replace(meaning.phrase, color=color_word(color, entry, draw))
    return meaning.narrowed(scene.colored(color), replace(phrase, color_after=draw.random() < 0.12))


def sized(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """The biggest, the smallest, the tallest."""
    entry = scene.entry(thing)
    if meaning is None or len(meaning.rivals) < 2 or entry.stuff or entry.pair or meaning.phrase.size:
        return None
    things, whole, two = meaning.rivals, scene.photograph.exhaustive, len(meaning.rivals) == 2
    found = []
    if scene.largest(things, lambda other: other.area, LARGER) is thing:
        found += ["biggest", "largest", "big", *(["bigger", "larger"] if two else [])]
    if whole and scene.smallest(things, lambda other: other.area, LARGER) is thing:
        found += ["smallest", "small", *(["smaller", "little"] if two else ["tiniest"])]
    if whole and all(map(_is_upright, things)) and scene.largest(things, _height, TALLER) is thing:
        found += ["tallest", *(["taller", "tall"] if two else [])]
    if not found:
        return None
    adjective, plain = draw.choice(found), meaning.phrase
    phrase = replace(plain, size=adjective)
    countable = plain.is_bare and not meaning.unsure and _is_noun_of_all(scene, meaning)
    if adjective.endswith("r") and countable and draw.random() < 0.3:
        plural = "" if plain.noun == "one" else f" {entry.plural_of(plain.noun)}"
        phrase = NounPhrase(f"{adjective} of the two{plural}", article="the")
    elif adjective.endswith("st") and draw.random() < 0.1:
        phrase = plain.with_after(f"that {'are' if plain.plural else 'is'} the {adjective}")
    return meaning.told(thing, phrase)


def looks_big(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """A size that only adds to what tells the thing already, or that tells it among others."""
    if meaning is None or scene.entry(thing).stuff or meaning.phrase.size:
        return None
    if len(meaning.rivals) > 1:
        return sized(scene, meaning, thing, draw)
    share = thing.area / (scene.height * scene.width)
    word = "big" if share > 0.25 else "small" if share < 0.02 else None
    return word and replace(meaning, phrase=replace(meaning.phrase, size=word))


def _height(thing: Thing) -> int:
    return thing.box[3] - thing.box[1]


def _is_upright(thing: Thing) -> bool:
    return _height(thing) > 1.2 * (thing.box[2] - thing.box[0])


def color_word(color: str, entry: CategoryWords, draw: random.Random) -> str:
    """What people call a color, of things of this kind."""
    return draw.choice(entry.shades.get(color) or SPOKEN.get(color, (color,)))


# Places


def extreme(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """The left one, the one at the top, in the middle, in front."""
    if meaning is None or not 2 <= len(meaning.rivals) <= MOST_RIVALS or scene.entry(thing).stuff:
        return None
    things, phrases = meaning.rivals, []
    sides = [side for side in SIDES if scene.extreme(things, side) is thing]
    there = [side for side in sides if scene.is_on_side(thing, side)]
    for side in sides:
        alone = scene.is_apart(things, thing, side)
        place = where(side, draw) if alone and side in there else outermost(side, draw, side in there)
        phrases += [meaning.phrase.with_before(draw.choice(leftmost(side, alone, side in there)))]
        phrases += [meaning.phrase.with_after(_standing(scene, thing, place, draw))] * 2
    for vertical, horizontal in [(v, h) for v in there for h in there if v in SIDES[2:] and h in SIDES[:2]]:
        corner = f"{draw.choice(('at', 'in', 'on'))} the {vertical} {horizontal}"
        phrases += [meaning.phrase.with_after(corner), meaning.phrase.with_before(f"{vertical} {horizontal}")]
    if _is_noun_of_all(scene, meaning) and len(things) <= 5 and scene.middle(things) is thing:
        between = ["between the other two"] if len(things) == 3 else []
        after = draw.choice(["in the middle", "in the center", "in the middle", *between])
        phrases += [meaning.phrase.with_after(after), meaning.phrase.with_before(draw.choice(("middle", "center")))]
    for sign, places in ((1, IN_FRONT), (-1, BEHIND)):
        if not scene.entry(thing).fixed and scene.nearest(things, sign) is thing:
            of_two = [place for place in places if len(things) == 2 or not place.endswith("er away")]
            phrases.append(meaning.phrase.with_after(draw.choice(of_two)))
    return meaning.told(thing, draw.choice(phrases)) if phrases else None


IN_FRONT = ("in front", "in the front", "closest to the camera", "nearest to us", "in the foreground", "closest to us")
BEHIND = (
    "in the back", "farthest away", "in the background", "farther away", "at the back", "farthest from us",
    "furthest away", "further away",
)  # fmt: skip


def placed(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """Where in the image it is: true of it, though others may be there too."""
    side = scene.place(thing)
    if meaning is None or side is None or not meaning.only(thing):
        return None
    if side == "middle":
        middle = draw.choice(("in the middle", "in the center", "in the middle of the picture"))
        return replace(meaning, phrase=meaning.phrase.with_after(_standing(scene, thing, middle, draw)))
    if draw.random() < 0.3 and side in ("left", "right") and not meaning.phrase.size:
        return replace(meaning, phrase=meaning.phrase.with_before(side))
    return replace(meaning, phrase=meaning.phrase.with_after(_standing(scene, thing, where(side, draw), draw)))


def counted(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """The second from the left."""
    if meaning is None or not 2 <= len(meaning.things) <= MOST_RIVALS or not _is_noun_of_all(scene, meaning):
        return None
    side = draw.choice(("left", "left", "right", "right", "top", "bottom"))
    order = scene.in_order(meaning.things, side)
    place = order.index(thing) if order and thing in order else len(ORDINALS)
    if place >= len(ORDINALS) or (len(order) == 2 and place == 1 and draw.random() < 0.5):
        return None
    ordinal = SHORT_ORDINALS[place] if draw.random() < 0.12 else ORDINALS[place]
    if len(order) > 2 and place == len(order) - 1 and draw.random() < 0.3:
        ordinal = "last"
    end = draw.choice([f"from the {side}", f"from the {side}", f"from {side}", f"counting from the {side}"])
    if side == "left" and draw.random() < 0.1:
        end = "from left to right"
    if place and draw.random() < 0.08:
        return meaning.told(thing, meaning.phrase.with_after(f"number {place + 1} {end}"))
    return meaning.told(thing, meaning.phrase.with_before(ordinal).with_after(end))


def where(side: str, draw: random.Random) -> str:
    """ "on the left" of the image."""
    if side in ("top", "bottom"):
        part = f"in the {'upper' if side == 'top' else 'lower'} part"
        ways = (f"at the {side}", f"on the {side}", part, f"at the {side} of the picture")
        return draw.choice((f"at the {side}", *ways))
    ways = (f"on the {side}", f"to the {side}", f"on the {side} side", f"on {side}", f"at the {side}", f"to {side}")
    return draw.choice((f"on the {side}", *ways, f"on the {side} of the image"))


def outermost(side: str, draw: random.Random, is_there: bool) -> str:
    """What is said of a thing that has others beside it on its side, or, not `is_there`, is itself on the other."""
    if side in ("top", "bottom"):
        return "furthest up" if side == "top" else "furthest down"
    ways = (f"furthest to the {side}", f"farthest to the {side}")
    return draw.choice((*ways, f"on the far {side}", f"all the way to the {side}") if is_there else ways)


def leftmost(side: str, alone: bool = True, is_there: bool = True) -> tuple[str, ...]:
    """Adjectives for an outermost thing; those that mean a side alone only where no other is `alone` there too."""
    words = {
        "left": ("leftmost", *(["far left"] if is_there else [])),
        "right": ("rightmost", *(["far right"] if is_there else [])),
        "top": ("topmost", "highest", "uppermost"),
        "bottom": ("lowest", "bottommost"),
    }[side]
    sides = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}.get(side, (side, side, f"{side} hand"))
    return words + sides * 2 if alone else words


def _standing(scene: Scene, thing: Thing, place: str, draw: random.Random) -> str:
    """The place, or "standing" there where a person is seen upright from head to shoes."""
    shod = any("shoes" in scene.entry(part).possible for part in scene.parts.get(thing.id, ()))
    upright = _height(thing) > 2.2 * (thing.box[2] - thing.box[0])
    return f"standing {place}" if shod and upright and draw.random() < 0.25 else place


# Persons by what they wear and carry


def dressed(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """A person by clothes."""
    if meaning is None or not scene.entry(thing).women:
        return None
    if scene.parts:
        return _with_part(scene, meaning, thing, draw, lambda entry: entry.worn)
    color = sure_color(scene.upper_shares(thing))
    if color not in CLOTHES_COLORS or not _is_upright(thing) or scene.photograph.is_dark:
        return None
    words = (f"in {color}", f"wearing {color}", f"dressed in {color}", f"in the {color} clothes")
    return meaning.narrowed(scene.dressed_in(color), meaning.phrase.with_after(draw.choice(words)))


def carrying(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """A person by what is carried."""
    if meaning is None or not scene.entry(thing).women:
        return None
    if scene.parts:
        return _with_part(scene, meaning, thing, draw, lambda entry: entry.carried)
    carried = [other for other in scene.things if scene.entry(other).carried and scene.touched_by(other)(thing)]
    if not carried:
        return None
    bag = draw.choice(carried)
    entry = scene.entry(bag)
    word = draw.choice(entry.words)
    if not scene.trusted(word):
        return None
    rivals, said = scene.meant_by(word), word
    color = sure_color(scene.photograph.shares(bag)) if entry.color and draw.random() < 0.4 else None
    if color and not scene.photograph.is_dark:
        rivals = [other for other in rivals if scene.colored(color)(other) is not False]
        said = f"{color_word(color, entry, draw)} {word}"

    def carries(person: Thing) -> bool | None:
        answers = {other.id: scene.touched_by(other)(person) for other in rivals}
        return True if answers[bag.id] else None if any(a is not False for a in answers.values()) else False

    return meaning.narrowed(carries, meaning.phrase.with_after(wearing(said, entry, draw)))


def riding(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """A person by what is ridden."""
    if meaning is None or not scene.entry(thing).women:
        return None
    ridden = [other for other in scene.things if scene.entry(other).ridden and scene.rides(thing, other)]
    if not ridden:
        return None
    entry = scene.entry(draw.choice(ridden))
    word = draw.choice(entry.words)
    if not scene.trusted(word):
        return None
    rivals = scene.meant_by(word)

    def rides(person: Thing) -> bool | None:
        answers = [scene.rides(person, other) for other in rivals]
        return True if True in answers else None if None in answers else False

    way = draw.choice(("riding", "riding", "on", "who rides", "that is riding"))
    return meaning.narrowed(rides, meaning.phrase.with_after(f"{way} {draw.choice(('a', 'the'))} {word}"))


def _with_part(
    scene: Scene, meaning: Meaning, thing: Thing, draw: random.Random, is_wanted: Callable[[CategoryWords], bool]
) -> Meaning | None:
    parts = [part for part in scene.parts.get(thing.id, ()) if is_wanted(scene.entry(part))]
    if not parts or not scene.photograph.exhaustive:
        return None
    part = draw.choice(parts)
    entry = scene.entry(part)
    word = draw.choice(entry.words) if draw.random() < 0.8 or not entry.also else draw.choice(entry.also)
    color = sure_color(scene.photograph.shares(part)) if entry.color and draw.random() < 0.65 else None
    color = None if scene.photograph.is_dark else color
    said = f"{color_word(color, entry, draw)} {word}" if color else word
    return meaning.narrowed(scene.has_part(word, color), meaning.phrase.with_after(wearing(said, entry, draw)))


def wearing(said: str, entry: CategoryWords, draw: random.Random) -> str:
    """ "with a red bag", "who is wearing jeans"."""
    article = "" if entry.pair or draw.random() < 0.15 else draw.choice(("a ", "the ", "a "))
    if article == "a " and said[0] in "aeiou":
        article = "an "
    ways = ("with", "with", "carrying", "holding", "who has", "that carries", "who is carrying", "having")
    if not entry.carried:
        ways = ("in", "in", "with", "wearing", "wearing", "who is wearing", "who wears", "that has")
        ways += () if entry.pair else ("dressed in",)
    return f"{draw.choice(ways)} {article}{said}"


# Relations to another thing


def related(scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
    """A thing by another: "the cup next to the laptop", "the cat on the couch"."""
    others = [o for o in scene.wholes if o is not thing and not scene.entry(o).stuff and scene.is_large_enough(o)]
    if meaning is None or not others or thing.owner is not None or scene.entry(thing).stuff:
        return None
    other = draw.choice(others)
    true = [name for name, (_, holds) in RELATIONS.items() if holds(scene, thing, other)]
    if not true:
        return None
    name = next((one for one in ("on", "in") if one in true), None) or draw.choice(true)
    ways, holds = RELATIONS[name]
    rivals = [o for o in meaning.rivals if o is not other]
    if not all(o is thing or holds(scene, o, other) is False for o in rivals):
        return None
    landmark = noun(scene, other, draw)
    if other in meaning.things and meaning.phrase.is_bare and draw.random() < 0.5:
        landmark = replace(meaning, phrase=NounPhrase("one"))  # "the cat behind the white one"
    if landmark and not (landmark.only(other) and draw.random() < 0.75):
        properties = [colored, looks_big] if landmark.only(other) else [colored, colored, dressed, extreme, sized]
        landmark = draw.choice(properties)(scene, landmark, other, draw)
    if landmark is None or not landmark.only(other) or landmark.phrase.said("") == "one":
        return None
    said = draw.choice(ways)
    if name == "next to" and scene.entry(thing).women and _is_upright(thing) and draw.random() < 0.2:
        said = f"standing {said}"
    return meaning.told(thing, meaning.phrase.with_after(f"{said} {landmark.phrase.said('the')}"))


# How a relation is said, and whether it holds between two things of a scene: yes, no, or not sure (None).
RELATIONS = {
    "left of": (("left of", "to the left of", "on the left of", "on the left side of"), Scene.left_of),
    "right of": (
        ("right of", "to the right of", "on the right of", "on the right side of"),
        lambda scene, thing, other: scene.left_of(other, thing),
    ),
    "above": (("above", "over", "higher than"), Scene.above),
    "below": (
        ("below", "under", "beneath", "underneath", "lower than"),
        lambda scene, thing, other: scene.above(other, thing),
    ),
    "next to": (("next to", "beside", "near", "by", "close to", "right next to", "alongside"), Scene.next_to),
    "on": (("on", "on top of", "on"), Scene.on),
    "in": (("in", "inside", "in"), Scene.inside),
    "in front of": (("in front of", "before"), Scene.in_front_of),
    "behind": (("behind", "in back of", "behind"), lambda scene, thing, other: scene.in_front_of(other, thing)),
}
