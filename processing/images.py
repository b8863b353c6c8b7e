"""Any image to upright RGB pixels, any binary mask to 0 and 1: paths, URLs, files, PIL images, arrays, tensors."""

import os
import string
from io import BytesIO
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension

try:
    from torchvision.io import decode_jpeg  # deprecated since 0.29; where it is gone, Pillow decodes
except ImportError:
    decode_jpeg = None

DOWNLOAD_TIMEOUT = 60  # seconds
# What brings the pixels of a file upright, by its EXIF orientation; 1 is upright.
UPRIGHT = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
ROWS_AT_ONCE = 64  # of an image copied out of Pillow, which takes four times as long for 12 million pixels at once


def rgb_arrays(images, input_data_format=None, timeout: float | None = None) -> list[np.ndarray]:
    """One image, or several in what `in_a_list` takes, as a list of uint8 (H_i, W_i, 3): see `rgb_array`."""
    images = in_a_list(images, ndim_of_many=4)
    if not images:
        raise ValueError("At least one image is needed, but the list of images is empty. Give one or more.")
    return [rgb_array(image, f"images[{i}]", input_data_format, timeout) for i, image in enumerate(images)]


def rgb_array(image, name: str = "image", input_data_format=None, timeout: float | None = None) -> np.ndarray:
    """Any image as its upright RGB pixels, uint8 (H, W, 3), each in 0..255.

    The EXIF orientation is applied, so that a path and an opened image agree; 16-bit gray is scaled to 8 bits;
    transparent pixels are laid over white; of an animation, the frame where it stands is taken: the first, when opened.

    Args:
        image: a path, a URL (also "data:image/…;base64,…"), a file opened in binary mode, such as `io.BytesIO` or the
            `.file` of an upload, a PIL image, a uint8 array (H, W) or (H, W, channels), or a uint8 tensor (H, W) or
            (channels, H, W), with 1 (gray), 3 (RGB) or 4 (RGBA) channels.
        name: what an error calls this image.
        input_data_format: "channels_first" or "channels_last", for an array or tensor laid out the other way.
        timeout: the longest wait for a server's next bytes, in seconds; 60 where it is None.

    Raises:
        ValueError: it is none of these, or its file is missing, damaged, too large or not an image.
    """
    return rgb_array_and_size(image, name, input_data_format, timeout)[0]


def rgb_array_and_size(
    image, name: str = "image", input_data_format=None, timeout: float | None = None, at_least=None
) -> tuple[np.ndarray, tuple[int, int]]:
    """As `rgb_array`, and the image's own (height, width), as it is displayed.

    With `at_least`, a (width, height), the file of a JPEG that is twice as large or more is decoded at a half, a
    quarter or an eighth of its size, no smaller than that: far faster, and the pixels are other means of the same.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        image = _image_from_array(image, name, input_data_format)
        if isinstance(image, np.ndarray):
            return image, image.shape[:2]
    is_file = isinstance(image, str | os.PathLike) or hasattr(image, "read")
    if not is_file and not isinstance(image, Image.Image):
        raise ValueError(
            f"An image must be a path, a URL, an open file, a PIL image, a uint8 array or a uint8 tensor, but {name} "
            f"is of type {type(image).__name__}. Give encoded bytes as io.BytesIO(data)."
        )
    file_name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "")
    name = f"{name} ({str(file_name)[:300]!r})" if file_name else name
    try:
        if not is_file:
            pixels = _upright_rgb(image)
            return pixels, pixels.shape[:2]
        with Image.open(_download(image, timeout or DOWNLOAD_TIMEOUT) if _is_url(image) else image) as opened:
            width, height = opened.size
            if at_least is not None:
                opened.draft(None, at_least)  # which changes `opened.size`, and nothing where it is no JPEG
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter
            pixels = _jpeg_pixels(opened) if opened.size == (width, height) else None
            pixels = _upright_rgb(opened) if pixels is None else pixels
            return pixels, (width, height) if turned else (height, width)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"An image may have at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels, but {name} claims more: {error} Make it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        heic = " For HEIC, the format of iPhones, call pillow_heif.register_heif_opener() of pip install pillow-heif."
        raise ValueError(
            f"An image must be one that Pillow can read whole and turn into RGB, but {name} is not: "
            f"{type(error).__name__}: {error} Check that the file exists, is complete and is an image, or leave it out."
            + (heic if isinstance(error, UnidentifiedImageError) else "")
        ) from error


def _image_from_array(array, name: str, input_data_format) -> "np.ndarray | Image.Image":
    """An array or tensor, checked: as it is where it is RGB already, else as a PIL image."""
    is_tensor = isinstance(array, torch.Tensor)
    usual = ChannelDimension.FIRST if is_tensor else ChannelDimension.LAST
    layout = ChannelDimension(input_data_format or usual)
    pixels = array.detach().cpu() if is_tensor else array
    if pixels.ndim == 3 and layout == ChannelDimension.FIRST:
        pixels = pixels.permute(1, 2, 0) if is_tensor else pixels.transpose(1, 2, 0)
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))
    if str(array.dtype).removeprefix("torch.") != "uint8" or not fits or 0 in pixels.shape:
        raise ValueError(
            f"An image array must be uint8, (H, W) or (H, W, channels) as an array, (H, W) or (channels, H, W) as a "
            f"tensor, with 1, 3 or 4 channels and at least one pixel, but {name} is {array.dtype} of shape "
            f"{tuple(array.shape)}. Scale it to 0..255, convert it to uint8, and pass input_data_format="
            "'channels_first' or 'channels_last' if its channels are on the other side."
        )
    pixels = pixels.numpy() if is_tensor else pixels
    if pixels.ndim == 3 and pixels.shape[-1] == 3:
        return pixels
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def _jpeg_pixels(image: Image.Image) -> np.ndarray | None:
    """The upright pixels of a JPEG's file in color, by torchvision: bit for bit Pillow's, without two of its copies.

    None: it is no such file, or torchvision cannot read it.
    """
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB" or decode_jpeg is None:
        return None
    image.fp.seek(0)
    encoded = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
    try:
        pixels = decode_jpeg(encoded).permute(1, 2, 0).numpy()  # its channels are last in memory, too
    except RuntimeError:
        return None
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """An opened PIL image of any mode as uint8 (H, W, 3), EXIF orientation applied."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert("RGB") would clip: everything above 255 would turn white
        gray = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)  # 65535 / 257 = 255
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} does not say which values are black and white; scale it to 8 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _is_url(source) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://", "data:"))


def _download(url: str, timeout: float) -> BytesIO:
    url = quote(url, safe=string.punctuation)  # letters beyond ASCII, and spaces
    with urlopen(Request(url, headers={"User-Agent": "m3dec"}), timeout=timeout) as answer:
        return BytesIO(answer.read())


def mask_arrays(segmentation_maps) -> list[np.ndarray]:
    """One mask, a list of masks or a 3-D array of them as a list of uint8 (H_i, W_i): see `mask_array`."""
    masks = in_a_list(segmentation_maps, ndim_of_many=3)
    return [mask_array(mask, f"segmentation_maps[{i}]") for i, mask in enumerate(masks)]


def mask_array(mask, name: str = "segmentation_map") -> np.ndarray:
    """A binary mask as uint8 (H, W), 1 on the object and 0 elsewhere.

    Args:
        mask: a PIL image of one channel, an array or a tensor (H, W); bool, or with the values 0 and 1, or 0 and 255.
        name: what an error calls this mask.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(mask, Image.Image):
        array = np.asarray(ImageOps.exif_transpose(mask))
    elif isinstance(mask, torch.Tensor):
        array = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()  # NumPy has no bfloat16
    else:
        array = mask
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.size == 0:
        arrived = f"of shape {array.shape}" if isinstance(array, np.ndarray) else f"of type {type(array).__name__}"
        raise ValueError(
            f"A segmentation map must be a PIL image of one channel, an array or a tensor of shape (H, W), but {name} "
            f"is {arrived}. Give one (H, W) mask per expression; decode RLE and polygons first."
        )
    if array.dtype == bool:
        return array.astype(np.uint8)
    foreground = array.max()
    if foreground not in (0, 1, 255) or not ((array == 0) | (array == foreground)).all():
        values = np.unique(array)
        shown = ", ".join(f"{value:g}" for value in values[:8]) + (", …" if len(values) > 8 else "")
        raise ValueError(
            f"A segmentation map must be bool, or hold only 0 and 1, or only 0 and 255, but {name} holds {shown}. "
            "Say which pixels are the object: `mask > 127`, or `label_map == object_id`."
        )
    return (array != 0).astype(np.uint8)


def in_a_list(inputs, ndim_of_many: int = 1) -> list:
    """One input as a list of it, or several, in whatever holds them, as a list: see `holds_many`."""
    return list(inputs) if holds_many(inputs, ndim_of_many) else [inputs]


def holds_many(inputs, ndim_of_many: int) -> bool:
    """Whether this is a list, tuple, column, Series, generator, array of strings or of `ndim_of_many` dimensions."""
    if isinstance(inputs, np.ndarray | torch.Tensor):
        names = isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OUT" and inputs.ndim > 0
        return names or inputs.ndim == ndim_of_many
    is_one = isinstance(inputs, str | bytes | dict | os.PathLike | Image.Image) or hasattr(inputs, "read")
    return not is_one and (hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__"))
