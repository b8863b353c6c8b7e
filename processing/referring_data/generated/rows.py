"""Rows of the schema out of instance files: photographs and mosaics of them, with sentences made from the masks."""

import hashlib
import io
import random
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from m3dec.processing.referring_data.pictures import PictureFolder
from m3dec.processing.referring_data.schema import REFERRING_FEATURES, ReferringDataError, encode_mask
from m3dec.processing.referring_data.tables import digest_of

from .mosaics import make_mosaic
from .photographs import InstanceFile, Photograph
from .sentences import Sentence, SentenceMaker
from .words import WORDS_FILE, read_words

JPEG_QUALITY = 90


def generate_referring_dataset(
    instances: str | Path,
    image_root: str | Path,
    words: str | Path | None = None,
    mosaics: int = 0,
    sentences_per_image: int = 16,
    val_share: float = 0.1,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Make referring sentences from instance masks: the splits "train" and "val".

    The same files, settings and seed give the same rows. Rows are written to the cache folder of 🤗 Datasets one by
    one, and found there again.

    Args:
        instances: a COCO-style instance file; `InstanceFile` says which fields are known.
        image_root: the folder of its photographs. Those that are missing are left out.
        words: a file of words for categories of your own; `words.yaml` in this folder shows its form.
        mosaics: how many mosaics of training photographs to add to "train".
        sentences_per_image: at most so many.
        val_share: the share of the photographs, drawn by file name alone, that "val" holds and "train" never shows.
        seed: of everything that is drawn.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ReferringDataError: a file is damaged, or no sentence could be made.
    """
    if not 0 <= val_share < 1:
        raise ReferringDataError(f"val_share is from 0 to below 1, such as 0.1, but it is {val_share}.")
    settings = {
        "instances": str(instances),
        "image_root": str(image_root),
        "words": None if words is None else str(words),
        "sentences_per_image": sentences_per_image,
        "val_share": val_share,
        "seed": seed,
    }
    code = [WORDS_FILE, *sorted(Path(__file__).parent.glob("*.py")), Path(instances), *([Path(words)] if words else [])]
    for path in code:
        if not path.is_file():
            raise FileNotFoundError(f"Sentences are made from {path}, which is no file.")
    splits = datasets.DatasetDict()
    for split, number in (("train", mosaics), ("val", 0)):
        given = settings | {"split": split, "mosaics": number}
        digest = digest_of(code, repr(sorted(given.items())))
        try:
            table = datasets.Dataset.from_generator(
                generate_rows, features=REFERRING_FEATURES, gen_kwargs=given, fingerprint=digest
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise error.__cause__ or error from None
        except ValueError:  # of a split without a row
            table = None
        if table is not None and len(table):
            splits[split] = table
    if not splits:
        raise _nothing_to_say(instances, image_root)
    return splits


def generate_rows(
    instances: str,
    image_root: str,
    words: str | None,
    mosaics: int,
    sentences_per_image: int,
    val_share: float,
    seed: int,
    split: str,
) -> Iterator[dict]:
    """The rows of one split, one photograph after the other, then the mosaics; arguments as above."""
    file, pictures = InstanceFile(instances), PictureFolder(image_root)
    maker = SentenceMaker(read_words(words), file.categories.values())
    image_ids = [
        number
        for number, image in file.images.items()
        if (split == "val") == is_held_out(image["file_name"], val_share)
    ]
    ref_id = sent_id = 0
    for photograph, image in _pictured(file, pictures, image_ids, mosaics, seed, split):
        draw = random.Random(f"{seed} {photograph.file_name}")
        sentences = maker.describe(photograph, draw, sentences_per_image)
        for row in _rows_of(photograph, image, sentences):
            row["ref_id"] = ref_id
            for sentence in row["sentences"]:
                sentence["sent_id"] = sent_id
                sent_id += 1
            ref_id += 1
            yield row


def random_sentences(
    instances: str | Path, image_root: str | Path, words: str | Path | None = None, seed: int = 0
) -> Iterator[tuple[str, Sentence]]:
    """Sentences of random images, each with its image's file name, without an end; arguments and errors as above."""
    file, pictures = InstanceFile(instances), PictureFolder(image_root)
    maker, draw = SentenceMaker(read_words(words), file.categories.values()), random.Random(seed)
    image_ids, silent = list(file.images), 0
    while silent < max(100, len(image_ids)):
        photograph = file.photograph(draw.choice(image_ids), pictures)
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


def _pictured(
    file: InstanceFile, pictures: PictureFolder, image_ids: list[int], mosaics: int, seed: int, split: str
) -> Iterator[tuple[Photograph, dict]]:
    """Each photograph and mosaic, with its image as a row holds it."""
    progress = tqdm(image_ids, desc=f"sentences, {split}", unit="image", disable=len(image_ids) < 200)
    usable = []
    for image_id in progress:
        photograph = file.photograph(image_id, pictures)
        if photograph and photograph.things:
            usable.append(image_id)
            yield photograph, {"path": str(pictures.find(photograph.file_name)), "bytes": None}
    if not usable:
        return
    first = 1 + max(file.images)
    for number in tqdm(range(mosaics), desc="mosaics", unit="image", disable=mosaics < 200):
        draw = random.Random(f"{seed} mosaic {number}")
        mosaic = make_mosaic(draw, lambda: file.photograph(draw.choice(usable), pictures), first + number)  # noqa: B023
        written = io.BytesIO()
        Image.fromarray(mosaic.image).save(written, "JPEG", quality=JPEG_QUALITY)
        yield mosaic, {"path": None, "bytes": written.getvalue()}


def _rows_of(photograph: Photograph, image: dict, sentences: list[Sentence]) -> Iterator[dict]:
    """A row for each group of things that sentences mean."""
    height, width = photograph.image.shape[:2]
    things = {thing.id: thing for thing in photograph.things}
    meant = {}
    for sentence in sentences:
        meant.setdefault(sentence.targets, []).append(sentence)
    for targets, said in meant.items():
        mask = np.zeros((height, width), dtype=bool)
        for target in targets:
            mask |= things[target].mask
        boxes = np.array([things[target].box for target in targets]).reshape(-1, 4)
        categories = {things[target].category_id for target in targets}
        yield {
            "image": image,
            "image_id": photograph.image_id,
            "ann_id": list(targets),
            "category_id": categories.pop() if len(categories) == 1 else None,
            "file_name": photograph.file_name,
            "height": height,
            "width": width,
            "bbox": [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()] if targets else [],
            "sentences": [{"raw": one.text, "sent": one.text, "category": one.kind} for one in said],
            "mask": encode_mask(mask),
        }
