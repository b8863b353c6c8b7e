"""From a noun phrase to what a person types: articles, fillers, requests, slips of the fingers."""

import random
from dataclasses import dataclass, replace

ARTICLES, ARTICLE_WEIGHTS = ("the", "", "that"), (0.55, 0.41, 0.04)
REQUESTS = (
    "find", "show me", "where is", "segment", "select", "please find", "can you find", "i mean", "mark", "point at",
    "look for", "i want", "give me", "highlight", "please mark", "could you select", "cut out", "just",
)  # fmt: skip
FILLERS = ("please", "in the picture", "in the photo", "in this image", "in the image", "here", "in this photo", "pls")
PLACES = ("on the ", "in the ", "at the ", "to the ")
REQUEST, FILLER, PRAISE, WHO, TURNED, SLIP = 0.06, 0.07, 0.04, 0.12, 0.04, 0.04  # how often


@dataclass(frozen=True)
class NounPhrase:
    """A noun with the words before and after it."""

    noun: str
    article: str | None = None  # None: whatever people say
    before: tuple[str, ...] = ()  # "second", "left"
    size: str = ""
    color: str = ""
    color_after: bool = False  # "that is red", in place of "red"
    after: tuple[str, ...] = ()  # "on the left"
    plural: bool = False
    praise: tuple[str, ...] = ()  # adjectives that say nothing

    @property
    def is_bare(self) -> bool:
        """Whether there is no word before or after the noun."""
        return not (self.before or self.size or self.color or self.after)

    def with_before(self, word: str) -> "NounPhrase":
        return replace(self, before=(word, *self.before))

    def with_after(self, words: str) -> "NounPhrase":
        return replace(self, after=(*self.after, words))

    def said(self, article: str) -> str:
        """The plain words, behind an article."""
        that_is = f"that {'are' if self.plural else 'is'} {self.color}" if self.color_after else ""
        color = "" if self.color_after else self.color
        words = (article, *self.before, self.size, color, self.noun, that_is, *self.after)
        return " ".join(word for word in words if word)


def spoken(phrase: NounPhrase, draw: random.Random) -> str:
    """The phrase as a person may type it."""
    article = phrase.article if phrase.article is not None else draw.choices(ARTICLES, ARTICLE_WEIGHTS)[0]
    if article == "that" and phrase.plural:
        article = "those"
    if phrase.praise and draw.random() < PRAISE:
        phrase = replace(phrase, size=f"{draw.choice(phrase.praise)} {phrase.size}".strip())
    first = phrase.after[0] if phrase.after else ""
    text = phrase.said(article)
    if first.startswith(PLACES) and " of the " not in first and draw.random() < TURNED:
        rest = replace(phrase, after=phrase.after[1:]).said(article)
        text = f"{first}, {rest}" if not article or draw.random() < 0.7 else f"{first} {rest}"
    elif first.startswith((*PLACES, "with ", "wearing ", "standing ", "left of", "right of", "next to")):
        text = _with_verb(phrase).said(article) if draw.random() < WHO else text
    if draw.random() < REQUEST:
        text = f"{draw.choice(REQUESTS)} {text}"
    if draw.random() < FILLER and " image" not in text and " picture" not in text:
        text = f"{text} {draw.choice(FILLERS)}"
    return _with_slip(text, draw) if draw.random() < SLIP else text


def _with_verb(phrase: NounPhrase) -> NounPhrase:
    """ "the dog that is on the left", "the person that has a bag"."""
    first = phrase.after[0]
    verb = "are" if phrase.plural else "is"
    if first.startswith("with "):
        verb, first = "have" if phrase.plural else "has", first.removeprefix("with ")
    return replace(phrase, after=(f"that {verb} {first}", *phrase.after[1:]))


def _with_slip(text: str, draw: random.Random) -> str:
    """A letter left out, doubled, or exchanged with the next, in one of the longer words."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5]
    if not long:
        return text
    place = draw.choice(long)
    word, at = words[place], draw.randrange(1, len(words[place]) - 1)
    first, letter, last = word[:at], word[at], word[at + 1 :]
    words[place] = draw.choice((first + last, first + 2 * letter + last, first + last[0] + letter + last[1:]))
    return " ".join(words)
