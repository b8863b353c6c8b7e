"""The words for categories, from a readable file: what people call a thing, its wider names, plurals, colors."""

import functools
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from m3dec.processing.referring_data.schema import ReferringDataError

WORDS_FILE = Path(__file__).parent / "words.yaml"  # its head says what each field means


@dataclass(frozen=True)
class CategoryWords:
    """One entry of the words file."""

    words: tuple[str, ...]
    also: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()
    women: tuple[str, ...] = ()
    men: tuple[str, ...] = ()
    plural: dict[str, str] = field(default_factory=dict)
    shades: dict[str, list[str]] = field(default_factory=dict)
    pair: bool = False
    color: bool = True
    rare: bool = False
    holds: bool = False
    inside: bool = False
    ridden: bool = False
    fixed: bool = False
    seldom: bool = False
    worn: bool = False
    carried: bool = False
    stuff: bool = False
    tells: str = ""

    @functools.cached_property
    def general(self) -> frozenset[str]:
        """All words that are true of every thing of the category."""
        return frozenset(self.words + self.also)

    @functools.cached_property
    def possible(self) -> frozenset[str]:
        """All words that may be true of a thing of the category."""
        return frozenset(self.words + self.also + self.alone + self.maybe + self.women + self.men)

    def plural_of(self, word: str) -> str:
        """The plural of one of the category's words, by the entry or by the rules of English spelling."""
        if word in self.plural or self.pair:
            return self.plural.get(word, word)
        first, _, last = word.rpartition(" ")
        if last in self.plural:
            return f"{first} {self.plural[last]}".strip()
        if last.endswith(("s", "x", "ch", "sh")):
            return word + "es"
        if last.endswith("y") and last[-2:-1] not in "aeiou":
            return word[:-1] + "ies"
        return word + "s"


def read_words(path: str | Path | None = None) -> dict[str, CategoryWords]:
    """Category → its words: those of the package, and over them those of a file of the user's.

    Raises:
        ReferringDataError: the file is no YAML of such entries; the message names the entry.
        FileNotFoundError: there is no such file.
    """
    return _packages_words() if path is None else {**_packages_words(), **_read_entries(Path(path))}


def words_of(category: str, words: dict[str, CategoryWords]) -> CategoryWords:
    """The entry of a category; one without an entry is its own word."""
    name = category.lower().strip()
    return words.get(name) or CategoryWords(words=(name.replace("_", " ").replace("-", " "),))


@functools.cache
def _packages_words() -> dict[str, CategoryWords]:
    return _read_entries(WORDS_FILE)


def _read_entries(path: Path) -> dict[str, CategoryWords]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ReferringDataError(f"A file of words is YAML, but {path} is not: {error}") from error
    if not isinstance(loaded, dict):
        raise ReferringDataError(
            f"A file of words has entries like `cat: {{words: [cat, kitty]}}`, but {path} has none."
        )
    return {str(name).lower(): _entry(str(name), entry, path) for name, entry in loaded.items()}


def _entry(name: str, entry, path: Path) -> CategoryWords:
    known = {one.name: one.type for one in fields(CategoryWords)}
    problem = None
    if not isinstance(entry, dict) or not entry.get("words"):
        problem = "it has no list `words`"
    elif unknown := sorted(set(entry) - set(known)):
        problem = f"it has {', '.join(map(str, unknown))}, and known are {', '.join(known)}"
    elif wrong := [key for key, value in entry.items() if not _is_of(known[key], value)]:
        problem = f"its {wrong[0]} is {entry[wrong[0]]!r:.60}"
    if problem:
        raise ReferringDataError(
            f"An entry of a file of words is like `cat: {{words: [cat, kitty], also: [animal]}}`, but for {name!r} in "
            f"{path} {problem}. The head of {WORDS_FILE.name} says what each field means."
        )
    return CategoryWords(
        **{key: tuple(map(str.lower, value)) if isinstance(value, list) else value for key, value in entry.items()}
    )


def _is_of(kind, value) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return value in ("woman", "man")
    if kind == dict[str, list[str]]:
        return isinstance(value, dict) and all(_is_of(list[str], texts) for texts in value.values())
    if kind == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)
