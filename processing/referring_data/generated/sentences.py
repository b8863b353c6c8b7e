"""Sentences about a photograph, made from its masks: each is true of exactly the things that it is given for."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .colors import COLORS, SPOKEN, sure_color
from .photographs import Photograph, Thing
from .phrasing import NounPhrase, spoken
from .truth import LARGER, MOST_RIVALS, TALLER, Scene
from .words import CategoryWords

ORDINALS = ("first", "second", "third", "fourth", "fifth")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
CLOTHES_COLORS = ("black", "white", "red", "blue", "green", "yellow", "purple")  # that skin and hair do not have
SIDES = ("left", "right", "top", "bottom")


class Sentence(NamedTuple):
    """What is said, of which kind it is, and the ids of the things that it means: none, one or several."""

    text: str
    kind: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Meaning:
    """A noun phrase in the making, and the things that it is true of. `unsure` things might be meant too."""

    phrase: NounPhrase
    things: tuple[Thing, ...]
    unsure: tuple[Thing, ...] = ()
    kinds: tuple[str, ...] = field(default=())  # the kind of each property that was added

    def only(self, thing: Thing) -> bool:
        return self.things == (thing,) and not self.unsure


class SentenceMaker:
    """Makes sentences about photographs.

    Args:
        words: category → its words, of `read_words`.
        categories: all that the file annotates; where an image is exhaustive, those that it lacks are not there.
    """

    def __init__(self, words: dict[str, CategoryWords], categories: Sequence[str] = ()):
        self.words, self.categories = words, sorted(set(categories))
        self.makers = {  # kind → (how it is made, how often it is tried)
            "category": (self.by_category, 1.2),
            "color": (self.by_color, 1.6),
            "position": (self.by_position, 2.0),
            "ordinal": (self.by_ordinal, 1.5),
            "superlative": (self.by_size, 1.2),
            "two properties": (self.by_two, 2.5),
            "clothes": (self.by_clothes, 1.6),
            "carried": (self.by_carried, 1.2),
            "part": (self.by_owner, 1.6),
            "only": (self.by_only, 0.3),
            "relation": (self.by_relation, 2.2),
            "several": (self.several, 1.2),
            "nothing": (self.nothing, 1.6),
        }

    def describe(self, photograph: Photograph, draw: random.Random, count: int) -> list[Sentence]:
        """Up to `count` different sentences, of kinds and things as mixed as the photograph allows."""
        scene = Scene(photograph, self.words)
        found, kinds, weights = {}, list(self.makers), [weight for _, weight in self.makers.values()]
        asked = [thing for thing in scene.things if scene.is_large_enough(thing)]
        if not asked:
            return []
        by_category = {}
        for thing in asked:
            by_category.setdefault(thing.category, []).append(thing)
        nothing = 0
        for _ in range(6 * count):
            if len(found) == count:
                break
            kind = draw.choices(kinds, weights)[0]
            if kind == "nothing" and nothing >= max(1, count // 6):
                continue
            thing = draw.choice(by_category[draw.choice(list(by_category))])
            made = self.makers[kind][0](scene, thing, draw)
            if made is None:
                continue
            phrase, targets = made
            text = spoken(phrase, draw)
            if text not in found:
                found[text] = Sentence(text, kind, tuple(sorted(target.id for target in targets)))
                nothing += kind == "nothing"
        return list(found.values())

    # Each kind: a noun phrase and the things that it means, or None where it cannot be said

    def by_category(self, scene: Scene, thing: Thing, draw: random.Random):
        alone = self.alone_word(scene, thing, draw) if draw.random() < 0.5 else None
        return self.single(alone or self.noun(scene, thing, draw), thing)

    def by_color(self, scene: Scene, thing: Thing, draw: random.Random):
        return self.single(self.colored(scene, self.noun(scene, thing, draw), thing, draw), thing)

    def by_position(self, scene: Scene, thing: Thing, draw: random.Random):
        meaning = self.noun(scene, thing, draw)
        if meaning and len(meaning.things) == 1:
            return self.single(self.placed(scene, meaning, thing, draw), thing)
        return self.single(self.extreme(scene, meaning, thing, draw), thing)

    def by_ordinal(self, scene: Scene, thing: Thing, draw: random.Random):
        return self.single(self.counted(scene, self.noun(scene, thing, draw), thing, draw), thing)

    def by_size(self, scene: Scene, thing: Thing, draw: random.Random):
        return self.single(self.sized(scene, self.noun(scene, thing, draw, largest=True), thing, draw), thing)

    def by_two(self, scene: Scene, thing: Thing, draw: random.Random):
        """Two properties at once; the first need not tell the thing alone, and the second may only be true."""
        meaning = self.noun(scene, thing, draw)
        first, second = draw.choice(
            [
                (self.colored, self.extreme),
                (self.colored, self.extreme),
                (self.colored, self.placed),
                (self.colored, self.counted),
                (self.colored, self.sized),
                (self.dressed, self.extreme),
                (self.dressed, self.placed),
                (self.carrying, self.extreme),
                (self.dressed, self.dressed),
                (self.dressed, self.carrying),
                (self.looks_big, self.placed),
                (self.looks_big, self.colored),
                (self.colored, self.related),
                (self.sized, self.placed),
            ]
        )
        meaning = first(scene, meaning, thing, draw)
        return self.single(second(scene, meaning, thing, draw) if meaning else None, thing)

    def by_clothes(self, scene: Scene, thing: Thing, draw: random.Random):
        person = self.person_of(scene, thing)
        return person and self.single(self.dressed(scene, self.noun(scene, person, draw), person, draw), person)

    def by_carried(self, scene: Scene, thing: Thing, draw: random.Random):
        person = self.person_of(scene, thing)
        return person and self.single(self.carrying(scene, self.noun(scene, person, draw), person, draw), person)

    def by_owner(self, scene: Scene, thing: Thing, draw: random.Random):
        """A part by whose it is: "the shoes of the man on the left", "the left woman's bag"."""
        owner = scene.by_id.get(thing.owner)
        if owner is None:
            return None
        part = self.noun(scene, thing, draw)
        if part is None or any(other is not thing and other.owner == owner.id for other in part.things):
            return None
        if draw.random() < 0.4:
            part = self.colored(scene, part, thing, draw) or part
        persons = self.noun(scene, owner, draw)
        if persons is None:
            return None
        if len(persons.things) > 1:
            way = draw.choice([self.extreme, self.extreme, self.counted, self.dressed, self.sized])
            persons = way(scene, persons, owner, draw)
        if persons is None or not persons.only(owner):
            return None
        phrase, whose = part.phrase, persons.phrase
        if not whose.after and draw.random() < 0.5:
            return replace(phrase, article="", before=(f"{whose.said('the')}'s", *phrase.before)), (thing,)
        if scene.entry(thing).worn and draw.random() < 0.4:
            return phrase.with_after(f"that {whose.said('the')} is wearing"), (thing,)
        return phrase.with_after(f"of {whose.said('the')}"), (thing,)

    def by_only(self, scene: Scene, thing: Thing, draw: random.Random):
        meaning = self.noun(scene, thing, draw)
        if meaning and scene.photograph.exhaustive and draw.random() < 0.5:
            meaning = self.colored(scene, meaning, thing, draw)
        if not meaning or not meaning.only(thing) or not scene.photograph.exhaustive:
            return None
        return replace(meaning.phrase, article="the", before=("only", *meaning.phrase.before)), (thing,)

    def by_relation(self, scene: Scene, thing: Thing, draw: random.Random):
        return self.single(self.related(scene, self.noun(scene, thing, draw), thing, draw), thing)

    def several(self, scene: Scene, thing: Thing, draw: random.Random):
        """All of a kind: "both dogs", "all the white cups", "the two cats on the left"."""
        entry = scene.entry(thing)
        word = draw.choice(entry.words)
        things = scene.meant_by(word)
        sure = all(word in scene.entry(other).general for other in things)
        if entry.stuff or entry.pair or len(things) < 2 or not sure or not scene.trusted(word):
            return None
        meaning = Meaning(NounPhrase(entry.plural_of(word)), tuple(things))
        if draw.random() < 0.4:
            meaning = self.colored(scene, meaning, thing, draw)
        if not meaning or meaning.unsure or len(meaning.things) < 2:
            return None
        things, number = meaning.things, len(meaning.things)
        order = scene.in_order(things, side) if (side := draw.choice(("left", "right"))) else None
        if number > 2 and order and draw.random() < 0.5:
            few = draw.choice([n for n in (2, 3) if n < number])
            phrase = meaning.phrase
            if draw.random() < 0.5:
                return replace(phrase.with_after(f"on the {side}"), before=(NUMBERS[few], *phrase.before)), order[:few]
            return replace(phrase, before=(f"{NUMBERS[few]} {side}most", *phrase.before)), order[:few]
        heads = ["all", "all the", "all of the", "every one of the", "the", "the group of"]
        heads += ["both", "both", "both of the", "the pair of", "the two"] if number == 2 else []
        heads += [f"the {NUMBERS[number]}", f"all {NUMBERS[number]}"] * 2 if 2 < number in NUMBERS else []
        if number == 2:
            heads = [head for head in heads if not head.startswith(("all", "every", "the group"))]
        return replace(meaning.phrase, article=draw.choice(heads)), things

    def nothing(self, scene: Scene, thing: Thing, draw: random.Random):
        """What is not there: another category, a noun of a wrong color, the third of two, clothes that nobody wears."""
        ways = [self.absent_category, self.absent_category, self.absent_color, self.absent_ordinal, self.absent_clothes]
        phrase = draw.choice(ways)(scene, thing, draw)
        return phrase and (phrase, ())

    def absent_category(self, scene: Scene, thing: Thing, draw: random.Random) -> NounPhrase | None:
        annotated = [name for name in self.categories if scene.photograph.exhaustive]
        name = draw.choice(annotated) if annotated and draw.random() < 0.6 else draw.choice(list(self.words))
        entry = self.words.get(name)
        if entry is None or (name not in annotated and not entry.rare):
            return None
        word = draw.choice(entry.words)
        there = set().union(*(scene.entry(other).possible for other in scene.photograph.things))
        if there & set(entry.words) or any(word in scene.words[n].possible for n in scene.words):
            return None
        if set(entry.also) & set().union(*(scene.entry(other).words for other in scene.photograph.things)):
            return None  # the "vehicle" that is there may be the truck that is asked for
        phrase = NounPhrase(word)
        dice = draw.random()
        if dice < 0.25:
            phrase = phrase.with_after(_where(draw.choice(SIDES[:2]), draw))
        elif dice < 0.4:
            phrase = phrase.with_before(
                draw.choice((*_leftmost(draw.choice(SIDES), draw), "biggest", "small", "second"))
            )
        if entry.color and draw.random() < 0.3:
            phrase = phrase.with_color(_color_word(draw.choice(COLORS), draw))
        return phrase

    def absent_color(self, scene: Scene, thing: Thing, draw: random.Random) -> NounPhrase | None:
        meaning = self.noun(scene, thing, draw)
        color = draw.choice(COLORS)
        if not meaning or not scene.entry(thing).color or not scene.photograph.exhaustive:
            return None
        if any(scene.colored(color)(other) is not False for other in meaning.things):
            return None
        phrase = meaning.phrase.with_color(_color_word(color, draw))
        return phrase.with_after(_where(draw.choice(SIDES[:2]), draw)) if draw.random() < 0.2 else phrase

    def absent_ordinal(self, scene: Scene, thing: Thing, draw: random.Random) -> NounPhrase | None:
        meaning, entry = self.noun(scene, thing, draw), scene.entry(thing)
        if not meaning or entry.stuff or entry.pair or thing.region or not scene.photograph.exhaustive:
            return None
        number = len(meaning.things) + draw.choice((0, 0, 1))
        if number >= len(ORDINALS):
            return None
        return meaning.phrase.with_before(ORDINALS[number]).with_after(f"from the {draw.choice(SIDES[:2])}")

    def absent_clothes(self, scene: Scene, thing: Thing, draw: random.Random) -> NounPhrase | None:
        person = self.person_of(scene, thing)
        if person is None or not scene.parts or not scene.photograph.exhaustive:
            return None
        name = draw.choice([n for n in self.categories if n in self.words] or [""])
        entry = self.words.get(name)
        if entry is None or not (entry.worn or entry.carried):
            return None
        meaning, word = self.noun(scene, person, draw), draw.choice(entry.words)
        color = draw.choice(COLORS) if entry.color and draw.random() < 0.5 else None
        related = set(entry.words + entry.also)
        parts = [part for parts in scene.parts.values() for part in parts if related & scene.entry(part).possible]
        if meaning is None or (parts and color is None):
            return None
        if any(scene.colored(color)(part) is not False for part in parts):
            return None
        said = f"{_color_word(color, draw)} {word}" if color else word
        return meaning.phrase.with_after(_wearing(said, entry, draw))

    # Properties: each narrows a meaning down to what it is also true of, or gives None

    def noun(self, scene: Scene, thing: Thing, draw: random.Random, largest: bool = False) -> Meaning | None:
        """A noun for a thing, and all that it may mean; None where something it may mean is not annotated."""
        entry = scene.entry(thing)
        words = entry.also if entry.also and draw.random() < 0.15 else entry.words
        word = draw.choices(words, [1 / place for place in range(1, len(words) + 1)])[0]  # the usual ones more often
        things = scene.meant_by(word)
        if not scene.trusted(word) and not (
            largest and scene.largest(things, lambda other: other.area, LARGER) is thing
        ):
            return None
        if not largest and len(things) > MOST_RIVALS * 3:
            return None
        phrase = NounPhrase(self.said_of(scene, thing, word, draw), plural=entry.pair, filler=_praise(entry))
        sure = [other for other in things if word in scene.entry(other).general]
        return Meaning(phrase, tuple(sure), tuple(other for other in things if other not in sure))

    def said_of(self, scene: Scene, thing: Thing, word: str, draw: random.Random) -> str:
        """The word, or one for a woman or a man where what the person wears tells it."""
        entry = scene.entry(thing)
        told = {scene.entry(part).tells for part in scene.parts.get(thing.id, ())} - {""}
        if entry.women and len(told) == 1 and draw.random() < 0.5:
            return draw.choice(entry.women if told == {"woman"} else entry.men)
        return word

    def alone_word(self, scene: Scene, thing: Thing, draw: random.Random) -> Meaning | None:
        """A word that may be wrong of some things of the category, where no other thing could be meant by it."""
        entry = scene.entry(thing)
        if not entry.alone:
            return None
        word = draw.choice(entry.alone)
        told = {scene.entry(part).tells for part in scene.parts.get(thing.id, ())} - {""}
        wrong = {"woman": ("man", "guy", "boy", "dude", "gentleman"), "man": ("woman", "lady", "girl")}
        if any(word in wrong[one] for one in told):
            return None
        rivals = [other for name in (*entry.words, word) for other in scene.meant_by(name) if other is not thing]
        if rivals or not all(map(scene.trusted, entry.words)):
            return None
        return Meaning(NounPhrase(word), (thing,))

    def single(self, meaning: Meaning | None, thing: Thing):
        return (meaning.phrase, (thing,)) if meaning and meaning.only(thing) else None

    def narrowed(self, meaning: Meaning, test: Callable[[Thing], bool | None], phrase: NounPhrase) -> Meaning:
        answers = {other.id: test(other) for other in (*meaning.things, *meaning.unsure)}
        things = tuple(other for other in meaning.things if answers[other.id])
        unsure = tuple(other for other in meaning.things if answers[other.id] is None)
        unsure += tuple(other for other in meaning.unsure if answers[other.id] is not False)
        return Meaning(phrase, things, unsure)

    def colored(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        color = sure_color(scene.photograph.shares[thing.id])
        if meaning is None or color is None or not scene.entry(thing).color or meaning.phrase.color:
            return None
        word = _color_word(color, draw)
        phrase = meaning.phrase.with_color(word)
        if draw.random() < 0.12:
            phrase = meaning.phrase.with_after(f"that {'are' if phrase.plural else 'is'} {word}")
        return self.narrowed(meaning, scene.colored(color), phrase)

    def extreme(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """The left one, the one at the top, in the middle, in front."""
        if meaning is None or meaning.unsure or not 2 <= len(meaning.things) <= MOST_RIVALS or scene.entry(thing).stuff:
            return None
        things, phrases = meaning.things, []
        for side in SIDES:
            if scene.extreme(things, side) is thing:
                phrases += [meaning.phrase.with_before(draw.choice(_leftmost(side, draw)))]
                phrases += [meaning.phrase.with_after(_where(side, draw))] * 2
        corners = [
            (vertical, horizontal)
            for vertical in ("top", "bottom")
            for horizontal in ("left", "right")
            if scene.extreme(things, vertical) is thing and scene.extreme(things, horizontal) is thing
        ]
        for vertical, horizontal in corners:
            phrases += [
                meaning.phrase.with_after(f"{draw.choice(('at', 'in', 'on'))} the {vertical} {horizontal}"),
                meaning.phrase.with_before(f"{vertical} {horizontal}"),
            ]
        if scene.middle(things) is thing:
            between = ["between the other two"] if len(things) == 3 else []
            after = draw.choice(["in the middle", "in the center", "in the middle", *between])
            phrases += [meaning.phrase.with_after(after), meaning.phrase.with_before(draw.choice(("middle", "center")))]
        for sign, places in (
            (1, ("in front", "in the front", "closest to us", "nearest to the camera", "in the foreground", "closest")),
            (
                -1,
                (
                    "in the back",
                    "farthest away",
                    "in the background",
                    "farther away",
                    "at the back",
                    "farthest from us",
                ),
            ),
        ):
            if scene.nearest(things, sign) is thing:
                if len(things) > 2:
                    places = [place for place in places if place != "farther away"]
                phrases.append(meaning.phrase.with_after(draw.choice(places)))
        return replace(meaning, phrase=draw.choice(phrases), things=(thing,)) if phrases else None

    def placed(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """Where in the image it is: true of it, though others may be there too."""
        side = scene.place(thing)
        if meaning is None or side is None or not meaning.only(thing):
            return None
        if side == "middle":
            return replace(meaning, phrase=meaning.phrase.with_after(draw.choice(("in the middle", "in the center"))))
        if draw.random() < 0.3 and side in ("left", "right"):
            return replace(meaning, phrase=meaning.phrase.with_before(side))
        return replace(meaning, phrase=meaning.phrase.with_after(_where(side, draw, far=False)))

    def counted(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """The second from the left."""
        if meaning is None or meaning.unsure or not 2 <= len(meaning.things) <= MOST_RIVALS or scene.entry(thing).stuff:
            return None
        side = draw.choice(("left", "left", "right", "right", "top", "bottom"))
        order = scene.in_order(meaning.things, side)
        place = order.index(thing) if order and thing in order else len(ORDINALS)
        if place >= len(ORDINALS) or (len(order) == 2 and place == 1 and draw.random() < 0.5):
            return None
        ordinal = ORDINALS[place]
        if place == 2 and draw.random() < 0.15:
            ordinal = "3rd"
        elif place == 1 and draw.random() < 0.15:
            ordinal = "2nd"
        end = draw.choice([f"from the {side}", f"from the {side}", f"from {side}", f"counting from the {side}"])
        if side == "left" and draw.random() < 0.1:
            end = "from left to right"
        return replace(meaning, phrase=meaning.phrase.with_before(ordinal).with_after(end), things=(thing,))

    def sized(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """The biggest, the smallest, the tallest."""
        if meaning is None or meaning.unsure or len(meaning.things) < 2 or scene.entry(thing).stuff:
            return None
        things, whole = meaning.things, scene.photograph.exhaustive
        found = []
        if scene.largest(things, lambda other: other.area, LARGER) is thing:
            found += ["biggest", "largest", "big"] + (["bigger", "larger"] if len(things) == 2 else [])
        if whole and scene.smallest(things, lambda other: other.area, LARGER) is thing:
            found += ["smallest", "small", "tiniest"] + (["smaller", "little"] if len(things) == 2 else [])
        if whole and scene.largest(things, lambda other: other.box[3] - other.box[1], TALLER) is thing:
            found += ["tallest"] + (["taller"] if len(things) == 2 else [])
        if whole and scene.largest(things, lambda other: other.box[2] - other.box[0], TALLER) is thing:
            found += ["widest"]
        if not found:
            return None
        adjective = draw.choice(found)
        phrase = meaning.phrase.with_size(adjective)
        if adjective.endswith("r") and draw.random() < 0.3:
            phrase = replace(NounPhrase(f"{adjective} of the two {scene.entry(thing).plural_of(meaning.phrase.noun)}"))
        elif adjective.endswith("st") and draw.random() < 0.1:
            phrase = meaning.phrase.with_after(f"that is the {adjective}")
        return replace(meaning, phrase=phrase, things=(thing,))

    def looks_big(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """A size that only adds to what tells the thing already, or that tells it among two."""
        if meaning is None or scene.entry(thing).stuff:
            return None
        if len(meaning.things) > 1:
            return self.sized(scene, meaning, thing, draw)
        share = thing.area / (scene.height * scene.width)
        word = "big" if share > 0.25 else "small" if share < 0.02 else None
        return word and replace(meaning, phrase=meaning.phrase.with_size(word))

    def dressed(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """A person by clothes."""
        if meaning is None or not scene.entry(thing).women:
            return None
        if not scene.parts:
            left, top, right, bottom = thing.box
            color = sure_color(scene.upper_shares[thing.id])
            if color not in CLOTHES_COLORS or bottom - top < 1.2 * (right - left):
                return None
            words = (f"in {color}", f"wearing {color}", f"dressed in {color}", f"in the {color} shirt")[:3]
            return self.narrowed(meaning, scene.dressed_in(color), meaning.phrase.with_after(draw.choice(words)))
        return self._with_part(scene, meaning, thing, draw, lambda entry: entry.worn)

    def carrying(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """A person by what is carried."""
        if meaning is None or not scene.entry(thing).women:
            return None
        if scene.parts:
            return self._with_part(scene, meaning, thing, draw, lambda entry: entry.carried)
        carried = [other for other in scene.things if scene.entry(other).carried and scene.touched_by(other)(thing)]
        if not carried:
            return None
        bag = draw.choice(carried)
        entry = scene.entry(bag)
        word = draw.choice(entry.words)
        rivals = scene.meant_by(word)
        if not scene.trusted(word):
            return None

        def carries(person: Thing) -> bool | None:
            answers = [scene.touched_by(other)(person) for other in rivals]
            return True if True in answers else None if None in answers else False

        return self.narrowed(meaning, carries, meaning.phrase.with_after(_wearing(word, entry, draw)))

    def _with_part(self, scene, meaning, thing, draw, is_wanted: Callable[[CategoryWords], bool]) -> Meaning | None:
        parts = [part for part in scene.parts.get(thing.id, ()) if is_wanted(scene.entry(part))]
        if not parts or not scene.photograph.exhaustive:
            return None
        part = draw.choice(parts)
        entry = scene.entry(part)
        word = draw.choice(entry.words) if draw.random() < 0.8 or not entry.also else draw.choice(entry.also)
        color = sure_color(scene.photograph.shares[part.id]) if entry.color and draw.random() < 0.65 else None
        said = f"{_color_word(color, draw)} {word}" if color else word
        phrase = meaning.phrase.with_after(_wearing(said, entry, draw))
        return self.narrowed(meaning, scene.has_part(word, color), phrase)

    def related(self, scene: Scene, meaning: Meaning | None, thing: Thing, draw: random.Random) -> Meaning | None:
        """A thing by another: "the cup next to the laptop", "the cat on the couch"."""
        family = {thing.id, thing.owner}
        others = [o for o in scene.things if o.id not in family and o.owner is None and scene.is_large_enough(o)]
        if meaning is None or meaning.unsure or not others or thing.owner is not None or scene.entry(thing).stuff:
            return None
        other = draw.choice(others)
        landmark = self.noun(scene, other, draw)
        if landmark and not landmark.only(other) and draw.random() < 0.7:
            way = draw.choice([self.colored, self.colored, self.sized, self.dressed])
            landmark = way(scene, landmark, other, draw)
        if landmark is None or not landmark.only(other) or landmark.phrase.noun_only == "":
            return None
        relations = {
            "left of": (scene.left_of, ("left of", "to the left of", "on the left of")),
            "right of": (lambda a, b: scene.left_of(b, a), ("right of", "to the right of", "on the right side of")),
            "above": (scene.above, ("above", "over")),
            "below": (lambda a, b: scene.above(b, a), ("below", "under", "beneath")),
            "next to": (scene.next_to, ("next to", "beside", "near", "by")),
        }
        if scene.entry(other).holds:
            relations["on"] = (scene.on, ("on", "on top of", "on"))
        true = [name for name, (holds, _) in relations.items() if holds(thing, other)]
        if not true:
            return None
        holds, said = relations["on" if "on" in true else draw.choice(true)]
        rivals = [o for o in meaning.things if o is not other]
        if not all(o is thing or holds(o, other) is False for o in rivals):
            return None
        phrase = meaning.phrase.with_after(f"{draw.choice(said)} {landmark.phrase.said('the')}")
        return replace(meaning, phrase=phrase, things=(thing,))

    def person_of(self, scene: Scene, thing: Thing) -> Thing | None:
        """The thing if it is a person, or the person whose part it is."""
        thing = scene.by_id.get(thing.owner, thing)
        return thing if scene.entry(thing).women else None


def _color_word(color: str, draw: random.Random) -> str:
    return draw.choice(SPOKEN.get(color, (color,)))


def _where(side: str, draw: random.Random, far: bool = True) -> str:
    if side in ("top", "bottom"):
        return draw.choice(
            (
                f"at the {side}",
                f"at the {side}",
                f"on the {side}",
                f"in the {'upper' if side == 'top' else 'lower'} part",
            )
        )
    ways = [f"on the {side}", f"on the {side}", f"to the {side}", f"on the {side} side", f"at {side}", f"at the {side}"]
    return draw.choice(ways + ([f"on the far {side}", f"furthest to the {side}"] if far else []))


def _leftmost(side: str, draw: random.Random) -> tuple[str, ...]:
    return {
        "left": ("left", "left", "leftmost", "far left", "left hand"),
        "right": ("right", "right", "rightmost", "far right", "right hand"),
        "top": ("top", "upper", "topmost", "highest", "uppermost"),
        "bottom": ("bottom", "lower", "lowest", "bottommost"),
    }[side]


def _wearing(said: str, entry: CategoryWords, draw: random.Random) -> str:
    article = "" if entry.pair or draw.random() < 0.15 else draw.choice(("a ", "the ", "a "))
    if article == "a " and said[0] in "aeiou":
        article = "an "
    ways = ("with", "with", "carrying", "holding", "who has", "that carries")
    if not entry.carried:
        ways = ("in", "with", "wearing", "wearing", "who is wearing", "who wears", "that has")
    return f"{draw.choice(ways)} {article}{said}"


def _praise(entry: CategoryWords) -> tuple[str, ...]:
    """Adjectives that say nothing."""
    if "animal" in entry.also:
        return ("cute", "sweet", "lovely", "happy", "funny")
    if entry.worn or entry.carried:
        return ("nice", "pretty", "stylish", "fancy")
    return ("nice",)
