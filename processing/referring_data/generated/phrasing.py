"""From a noun phrase to what a person types: articles, fillers, requests, slips of the fingers."""

import random
from dataclasses import dataclass, replace

ARTICLES, ARTICLE_WEIGHTS = ("the", "", "that"), (0.55, 0.41, 0.04)
REQUESTS = (
    "find", "show me", "where is", "segment", "select", "please find", "can you find", "i mean", "mark", "point at",
    "look for", "i want", "give me", "highlight", "please mark", "could you select", "cut out", "just",
)  # fmt: skip
FILLERS = ("please", "in the picture", "in the photo", "in this image", "in the image", "here", "in this photo", "pls")
REQUEST, FILLER, PRAISE, WHO, SLIP = 0.06, 0.07, 0.03, 0.12, 0.04  # how often


@dataclass(frozen=True)
class NounPhrase:
    """A noun with what stands before and after it."""

    noun: str
    article: str | None = None  # None: whatever people say
    before: tuple[str, ...] = ()  # "second", "left"
    size: str = ""
    color: str = ""
    after: tuple[str, ...] = ()  # "on the left"
    plural: bool = False
    filler: tuple[str, ...] = ()  # adjectives that say nothing

    @property
    def noun_only(self) -> str:
        return self.noun

    def with_before(self, word: str) -> "NounPhrase":
        return replace(self, before=(word, *self.before))

    def with_after(self, words: str) -> "NounPhrase":
        return replace(self, after=(*self.after, words))

    def with_color(self, color: str) -> "NounPhrase":
        return replace(self, color=color)

    def with_size(self, size: str) -> "NounPhrase":
        return replace(self, size=size)

    def said(self, article: str) -> str:
        """The plain words, behind an article."""
        words = (article, *self.before, self.size, self.color, self.noun, *self.after)
        return " ".join(word for word in words if word)


def spoken(phrase: NounPhrase, draw: random.Random) -> str:
    """The phrase as a person may type it."""
    article = phrase.article if phrase.article is not None else draw.choices(ARTICLES, ARTICLE_WEIGHTS)[0]
    if phrase.filler and draw.random() < PRAISE:
        phrase = replace(phrase, size=f"{draw.choice(phrase.filler)} {phrase.size}".strip())
    first = phrase.after[0] if phrase.after else ""
    if (
        first.startswith(("on ", "in ", "at ", "left of", "right of", "next to", "with ", "wearing"))
        and draw.random() < WHO
    ):
        verb = "are" if phrase.plural or (phrase.article or "").startswith(("both", "all", "the two")) else "is"
        verb = "has" if first.startswith("with ") and verb == "is" else verb
        rest = first.removeprefix("with ") if verb == "has" else first
        phrase = replace(phrase, after=(f"that {verb} {rest}", *phrase.after[1:]))
    text = phrase.said(article)
    if draw.random() < REQUEST:
        text = f"{draw.choice(REQUESTS)} {text}"
    if draw.random() < FILLER:
        text = f"{text} {draw.choice(FILLERS)}"
    return _with_slip(text, draw) if draw.random() < SLIP else text


def _with_slip(text: str, draw: random.Random) -> str:
    """A letter left out, doubled, or exchanged with the next, in one of the longer words."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5]
    if not long:
        return text
    place = draw.choice(long)
    word, at = words[place], draw.randrange(1, len(words[place]) - 1)
    slips = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    )
    words[place] = draw.choice(slips)
    return " ".join(words)
