"""Rows of the schema out of instance files: photographs and mosaics of them, with sentences made from the masks."""

import functools
import hashlib
import io
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import datasets
from PIL import Image

from m3dec.processing.referring_data.readers.coco_records import row_without_image
from m3dec.processing.referring_data.readers.contradictions import warn_of_contradictions
from m3dec.processing.referring_data.readers.images import ImageFolder
from m3dec.processing.referring_data.readers.tables import digest_of
from m3dec.processing.referring_data.schema import REFERRING_FEATURES, ReferringDataError

from .mosaics import make_mosaic
from .photographs import InstanceFile, Photograph
from .sentences import Sentence, SentenceMaker
from .words import WORDS_FILE, read_words

JPEG_QUALITY = 90
TASKS = 100  # images that a process makes in one go
MOST_TRIES = 200  # to find one of the photographs in its folder


def generate_referring_dataset(
    instances: str | Path,
    image_root: str | Path,
    words: str | Path | None = None,
    mosaics: int = 0,
    sentences_per_image: int = 16,
    val_share: float = 0.1,
    seed: int = 0,
    num_proc: int = 1,
) -> datasets.DatasetDict:
    """Make referring sentences from instance masks: the splits "train" and "val".

    The same files, settings and seed give the same rows, in any number of processes. Rows are written to the cache
    folder of 🤗 Datasets one by one, and found there again.

    Args:
        instances: a COCO-style instance file; `InstanceFile` says which fields are known.
        image_root: the folder of its photographs. Those that are missing are left out.
        words: a file of words for categories of your own; `words.yaml` in this folder shows its form.
        mosaics: how many mosaics of training photographs to add to "train".
        sentences_per_image: at most so many.
        val_share: the share of the photographs, drawn by file name alone, that "val" holds and "train" never shows.
        seed: of everything that is drawn.
        num_proc: how many processes make the sentences.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ReferringDataError: a file is damaged, or no sentence could be made.
    """
    if not 0 <= val_share < 1:
        raise ReferringDataError(f"val_share is from 0 to below 1, such as 0.1, but it is {val_share}.")
    for path in (instances, *([words] if words else [])):
        if not Path(path).is_file():
            raise FileNotFoundError(f"Sentences are made from {path}, which is no file.")
    settings = {
        "instances": str(Path(instances).absolute()),
        "image_root": str(Path(image_root).absolute()),
        "words": None if words is None else str(Path(words).absolute()),
        "sentences_per_image": sentences_per_image,
        "val_share": val_share,
        "seed": seed,
    }
    file = _instances(settings["instances"])
    code = [WORDS_FILE, *sorted(Path(__file__).parent.glob("*.py")), Path(instances), *([Path(words)] if words else [])]
    made_of = digest_of(code, f"{sorted(settings.items())} {_state_of_images(file, ImageFolder(image_root))}")
    read_words(words)  # errors before the work begins
    splits = datasets.DatasetDict()
    for split, number in (("train", mosaics), ("val", 0)):
        count = len(_images_of(file, split, val_share)) + number
        tasks = [(first, min(first + TASKS, count)) for first in range(0, count, TASKS)]
        if table := _table_of(settings | {"split": split, "tasks": tasks}, f"{made_of}-{split}-{number}", num_proc):
            splits[split] = table
    if not splits:
        raise _nothing_to_say(instances, image_root)
    return splits


def _table_of(given: dict, fingerprint: str, num_proc: int) -> datasets.Dataset | None:
    """A table of what `generate_rows(**given)` yields, None where that is nothing."""
    processes = min(num_proc, len(given["tasks"]))
    try:
        return datasets.Dataset.from_generator(
            generate_rows,
            features=REFERRING_FEATURES,
            gen_kwargs=given,
            fingerprint=fingerprint,
            num_proc=processes if processes > 1 else None,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    except ReferringDataError:
        raise
    except ValueError:  # of a split without a row
        return None


def generate_rows(
    tasks: list[tuple[int, int]],
    instances: str,
    image_root: str,
    words: str | None,
    sentences_per_image: int,
    val_share: float,
    seed: int,
    split: str,
) -> Iterator[dict]:
    """The rows of one split. `tasks` has ranges of numbers: the first are its photographs, further ones mosaics of
    them. 🤗 Datasets calls this with one range at a time. The other arguments are those above."""
    file, folder = _instances(instances), ImageFolder(image_root)
    maker = SentenceMaker(read_words(words), file.categories.values())
    image_ids = _images_of(file, split, val_share)
    for task in itertools.chain.from_iterable(itertools.starmap(range, tasks)):
        if task < len(image_ids):
            photograph = file.photograph(image_ids[task], folder)
            image = photograph and {"path": str(folder.find(photograph.file_name)), "bytes": None}
        else:
            photograph, image = _mosaic(file, folder, image_ids, task - len(image_ids), seed)
        if photograph is not None:
            draw = random.Random(f"{seed} {photograph.file_name}")
            sentences = maker.describe(photograph, draw, sentences_per_image)
            yield from _rows_of(photograph, image, sentences, first=task * sentences_per_image)
    warn_of_contradictions(file.contradictions, instances)
    file.contradictions.clear()


@functools.lru_cache(maxsize=1)
def _instances(path: str) -> InstanceFile:
    """The file, read once: forked processes find it in their memory."""
    return InstanceFile(path)


@functools.lru_cache(maxsize=4)
def _images_of(file: InstanceFile, split: str, val_share: float) -> list[int]:
    """The numbers of a split's images in which something is annotated."""
    annotated = file.annotated()
    return [
        number
        for number, image in file.images.items()
        if number in annotated and (split == "val") == is_held_out(image["file_name"], val_share)
    ]


def _state_of_images(file: InstanceFile, folder: ImageFolder) -> str:
    """A text that is another where an image was added or replaced."""
    digest = hashlib.sha256()
    for image in file.images.values():
        path = folder.find(image["file_name"])
        stat = os.stat(path) if path else None
        digest.update(f"{path} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def random_sentences(
    instances: str | Path, image_root: str | Path, words: str | Path | None = None, seed: int = 0
) -> Iterator[tuple[str, Sentence]]:
    """Sentences of random images, each with its image's file name, without an end; arguments and errors as above."""
    file, folder = InstanceFile(instances), ImageFolder(image_root)
    maker, draw = SentenceMaker(read_words(words), file.categories.values()), random.Random(seed)
    image_ids, silent = list(file.images), 0
    while silent < max(100, len(image_ids)):
        photograph = file.photograph(draw.choice(image_ids), folder)
        sentences = maker.describe(photograph, draw, 4) if photograph else []
        silent = 0 if sentences else silent + 1
        for sentence in sentences[:2]:
            yield photograph.file_name, sentence
    raise _nothing_to_say(instances, image_root)


def is_held_out(file_name: str, share: float) -> bool:
    """Whether a photograph belongs to "val": by its own name alone, without folders, so that it stays there whatever
    else is in the file, and where files are put together."""
    name = PurePosixPath(file_name).name
    digest = hashlib.sha256(name.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _nothing_to_say(instances: str | Path, image_root: str | Path) -> ReferringDataError:
    return ReferringDataError(
        f"No sentence could be made from {instances}. Are its photographs in {image_root}, and their things large "
        "enough to be asked for?"
    )


def _mosaic(
    file: InstanceFile, folder: ImageFolder, image_ids: list[int], number: int, seed: int
) -> tuple[Photograph | None, dict | None]:
    """A mosaic of some of the images, and as a row holds it."""
    draw = random.Random(f"{seed} mosaic {number}")

    def another() -> Photograph:
        for _ in range(MOST_TRIES):
            photograph = file.photograph(draw.choice(image_ids), folder)
            if photograph and photograph.things:
                return photograph
        raise _nothing_to_say(file.path, folder.root)

    mosaic = make_mosaic(draw, another, 1 + max(file.images) + number)
    written = io.BytesIO()
    Image.fromarray(mosaic.image).save(written, "JPEG", quality=JPEG_QUALITY)
    return mosaic, {"path": None, "bytes": written.getvalue()}


def _rows_of(photograph: Photograph, image: dict, sentences: list[Sentence], first: int) -> Iterator[dict]:
    """A row for each group of things that sentences mean; references and sentences are numbered from `first` on."""
    height, width = photograph.image.shape[:2]
    record = {"id": photograph.image_id, "file_name": photograph.file_name, "height": height, "width": width}
    things = {thing.id: thing for thing in photograph.things}
    meant = {}
    for number, sentence in enumerate(sentences, start=first):
        said = {"sent_id": number, "raw": sentence.text, "sent": sentence.text, "category": sentence.kind}
        meant.setdefault(sentence.targets, []).append(said)
    for ref_id, (targets, said) in enumerate(meant.items(), start=first):
        annotations = [things[target].annotation(height, width) for target in targets]
        row = row_without_image(ref_id=ref_id, split=None, image=record, annotations=annotations, sentences=said)
        yield {"image": image, **{name: row[name] for name in REFERRING_FEATURES if name != "image"}}
