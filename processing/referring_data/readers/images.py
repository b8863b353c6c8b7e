"""The images that annotations name, found in one folder and never outside of it."""

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


class MissingImagesError(FileNotFoundError):
    """Images that annotations name are not there. `names` has all of them."""

    def __init__(self, names: list[str], total: int, root: Path):
        super().__init__(
            f"{len(names)} of {total} images are not in {root}, such as {', '.join(names[:3])}. Complete the folder, "
            "pass another image_root, or leave their references out by on_missing='skip'."
        )
        self.names = names


MissingPicturesError = MissingImagesError  # another name of it, which programs may catch


class ImageFolder:
    """A folder of images.

    Args:
        root: the folder. COCO's images are found by their names of 2014 and of 2017 alike.

    Raises:
        FileNotFoundError: it is not a folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise FileNotFoundError(f"Images are read from {root}, which is not a folder. Pass image_root=…")
        self._real_root = os.path.realpath(self.root)
        self._is_inside = functools.cache(self._is_inside)

    def find(self, name: str) -> str | None:
        """The path of the image `name`, which may be in a folder below the root; None where there is none.

        Raises:
            ReferringDataError: the name leads out of the folder: absolute, through "..", or by a link.
        """
        if not isinstance(name, str) or not name or set(name) & set("\0\\:"):
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
        """The paths of images by their names.

        Args:
            names: may repeat.
            on_missing: "error", or "skip" to leave missing images out, with a warning that lists them.

        Raises:
            MissingImagesError: images are missing and on_missing is "error".
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
            raise MissingImagesError(missing, len(paths), self.root)
        if missing:
            listed = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
            logger.warning(
                f"{len(missing)} of {len(paths)} images are not in {self.root}; what refers to them is left out: "
                f"{listed}. on_missing='error' raises a MissingImagesError whose `names` has them all."
            )
        return {name: path for name, path in paths.items() if path is not None}

    def _is_inside(self, path: str) -> bool:
        return os.path.commonpath([self._real_root, os.path.realpath(path)]) == self._real_root

    def _unsafe(self, name) -> ReferringDataError:
        return ReferringDataError(
            f"An image is named by a path below the folder of the images ({self.root}), without '..', '\\', ':' and "
            f"links that leave it, but an annotation names {name!r:.80}. Do not use the file, or correct the name."
        )


def names_of(name: str) -> list[str]:
    """`name`, and what the same image of COCO's training set is called in the other year's release."""
    if match := re.fullmatch(r"COCO_train2014_(\d{12}\.jpg)", name):
        return [name, match[1]]
    return [name, f"COCO_train2014_{name}"] if re.fullmatch(r"\d{12}\.jpg", name) else [name]


def image_size(source: str | bytes, name: str) -> tuple[int, int]:
    """(height, width) of an image as it is displayed, from the head of its file.

    Args:
        source: its path, or all its bytes.
        name: what an error calls it.

    Raises:
        ReferringDataError: it is no image, or claims more pixels than Pillow opens.
    """
    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # Pillow has turned a TIFF's size already
            return image.size if turned else image.size[::-1]
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise no_image(name, error) from error


def check_image_size(source: str | bytes, height: int, width: int, name: str) -> None:
    """Raise a ReferringDataError where an image is not of the size its annotations are for, or is no image."""
    size = image_size(source, name)
    if size != (height, width):
        raise ReferringDataError(
            f"An image has the size its annotations say, but {name} is {size} and its annotations are for "
            f"{(height, width)} (height, width). Is it another version of the image, or turned by a camera's flag?"
        )


def check_image(data: bytes, height: int, width: int, file_name: str) -> None:
    """As `check_image_size`, of all bytes of a file; an image that is cut off is refused too."""
    check_image_size(data, height, width, file_name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (image.width // 8, image.height // 8))  # an eighth of a JPEG is enough, and faster
            image.load()
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise no_image(file_name, error) from error


def no_image(name: str, error: Exception) -> ReferringDataError:
    """The error for a file that Pillow cannot open or read to its end."""
    return ReferringDataError(
        f"Images are whole files that Pillow opens, but {name} is not: {type(error).__name__}: {error!s:.120}. Replace "
        "it, or leave out what refers to it."
    )
