"""The pictures that annotations name, found in one folder and never outside of it."""

import functools
import io
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import ExifTags, Image

from m3dec.processing.referring_data.schema import ReferringDataError

logger = logging.getLogger(__name__)


class MissingPicturesError(FileNotFoundError):
    """Pictures that annotations name are not there. `names` has all of them."""

    def __init__(self, names: list[str], total: int, root: Path):
        super().__init__(
            f"{len(names)} of {total} pictures are not in {root}, such as {', '.join(names[:3])}. Complete the folder, "
            "pass another image_root, or leave their references out by on_missing='skip'."
        )
        self.names = names


class PictureFolder:
    """A folder of pictures.

    Args:
        root: the folder. COCO's pictures are found by their names of 2014 and of 2017 alike.

    Raises:
        FileNotFoundError: it is not a folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise FileNotFoundError(f"Pictures are read from {root}, which is not a folder. Pass image_root=…")
        self._real_root = os.path.realpath(self.root)
        self._is_inside = functools.cache(self._is_inside)

    def find(self, name: str) -> str | None:
        """The path of the picture `name`, which may stand in a folder below the root; None where there is none.

        Raises:
            ReferringDataError: the name leads out of the folder: absolute, through "..", or by a link.
        """
        if not isinstance(name, str) or not name or "\0" in name or "\\" in name or ":" in name:
            raise self._unsafe(name)
        if name.startswith("/") or ".." in name.split("/"):
            raise self._unsafe(name)
        for candidate in names_of(name):
            path = os.path.join(self.root, candidate)
            if not os.path.isfile(path):
                continue
            if not self._is_inside(path if os.path.islink(path) else os.path.dirname(path)):
                raise self._unsafe(name)
            return path
        return None

    def find_all(self, names: Iterable[str], on_missing: str = "error") -> dict[str, str]:
        """The paths of pictures by their names.

        Args:
            names: may repeat.
            on_missing: "error", or "skip" to leave those that are not there out, with a warning that lists them.

        Raises:
            MissingPicturesError: some are not there and on_missing is "error".
            ReferringDataError: a name leads out of the folder.
        """
        if on_missing not in ("error", "skip"):
            raise ValueError(f"on_missing is 'error' or 'skip', but it is {on_missing!r}.")
        names = list(names)
        for name in names:
            if not isinstance(name, str):  # a list could not be looked up below
                raise self._unsafe(name)
        paths = {name: self.find(name) for name in dict.fromkeys(names)}
        missing = sorted(name for name, path in paths.items() if path is None)
        if missing and on_missing == "error":
            raise MissingPicturesError(missing, len(paths), self.root)
        if missing:
            listed = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
            logger.warning(
                "%d of %d pictures are not in %s; what refers to them is left out: %s. on_missing='error' raises a "
                "MissingPicturesError whose `names` has them all.",
                len(missing),
                len(paths),
                self.root,
                listed,
            )
        return {name: path for name, path in paths.items() if path is not None}

    def _is_inside(self, path: str) -> bool:
        return os.path.commonpath([self._real_root, os.path.realpath(path)]) == self._real_root

    def _unsafe(self, name) -> ReferringDataError:
        return ReferringDataError(
            f"A picture is named by a path below the folder of the pictures ({self.root}), without '..', '\\', ':' and "
            f"links that leave it, but an annotation names {name!r:.80}. Do not use the file, or correct the name."
        )


def names_of(name: str) -> list[str]:
    """`name`, and what the same picture of COCO's training set is called in the other year's release."""
    if match := re.fullmatch(r"COCO_train2014_(\d{12}\.jpg)", name):
        return [name, match[1]]
    return [name, f"COCO_train2014_{name}"] if re.fullmatch(r"\d{12}\.jpg", name) else [name]


def picture_size(source: str | bytes, name: str) -> tuple[int, int]:
    """(height, width) of a picture as it is displayed, from the head of its file.

    Args:
        source: its path, or all its bytes.
        name: what an error calls it.

    Raises:
        ReferringDataError: it is no picture, or claims more pixels than Pillow opens.
    """
    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # whose size is as it is displayed
            return image.size if turned else image.size[::-1]
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise ReferringDataError(
            f"Pictures are files that Pillow opens, but {name} is not: {type(error).__name__}: {error!s:.120}. Replace "
            "it, or leave out what refers to it."
        ) from error


def check_picture_size(source: str | bytes, height: int, width: int, name: str) -> None:
    """Refuse a picture that is not of the size its annotations are for.

    Raises:
        ReferringDataError: it is of another size, or no picture.
    """
    size = picture_size(source, name)
    if size != (height, width):
        raise ReferringDataError(
            f"A picture has the size its annotations say, but {name} is {size} and its annotations are for "
            f"{(height, width)} (height, width). Is it another version of the picture, or turned by a camera's flag?"
        )
