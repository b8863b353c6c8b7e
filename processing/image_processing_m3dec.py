"""Pictures and masks to tensors: any kind of image in, `pixel_values` and `labels` out (§ III, Fig. 2: the input)."""

import os
import string
from io import BytesIO
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

DOWNLOAD_TIMEOUT = 60  # seconds
GREY = 128  # of 255, a letterbox's border before normalization: VLT's 0.5, rounded to what a pixel can hold


class M3DecImagesKwargs(ImagesKwargs, total=False):
    """The settings of every image processor, and whether ours keeps an image's proportions."""

    do_letterbox: bool | None


class M3DecImageProcessor(TorchvisionBackend):
    """Stretch images to S x S, bring them to 0..1, normalize them; stretch masks with them, by nearest neighbour.

    The defaults are § IV-A's 416 px and Darknet's own convention, RGB/255 without mean and standard deviation. Another
    backbone's `image_mean` and `image_std` are given here, and are saved and loaded with everything else.

    With `do_letterbox=True` proportions are kept, as VLT and CRIS do: the largest copy that fits is centred on an S x S
    canvas, whose border is grey, and 0 in masks. `post_process_referring_segmentation` cuts the border off again, so
    the mode and `size` belong to the processor: set them where it is made or loaded, not for one call.
    """

    valid_kwargs = M3DecImagesKwargs
    size = SizeDict(height=416, width=416)
    resample = PILImageResampling.BILINEAR  # with antialiasing
    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_letterbox = False  # a stretch

    def preprocess(self, images, segmentation_maps=None, **kwargs: Unpack[M3DecImagesKwargs]) -> BatchFeature:
        """Turn images, and masks where there are any, into tensors. There may be more masks than images.

        Args:
            images: one image or a list of them, of the kinds `rgb_array` takes. Sizes may differ.
            segmentation_maps: one binary mask or a list of them, of the kinds `mask_array` takes.

        Returns:
            pixel_values: (B, 3, S, S) float32, normalized per channel.
            labels: (N, S, S) float32, 0.0 or 1.0, in the frame of pixel_values: 0.0 on a letterbox's border. Absent
                without segmentation_maps.

        Raises:
            ValueError: an image cannot be read, a mask is not binary, or this call asks for another frame than
                post-processing will undo: see `check_frame`.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, input_data_format, return_tensors, device=None, **kwargs
    ) -> BatchFeature:
        check_frame(self, kwargs)
        pictures = rgb_arrays(images, input_data_format)
        pictures = [np.require(picture, requirements=["C", "W"]) for picture in pictures]  # what torch takes
        # Channels stay last in memory until all is done: torch resizes bytes twice as fast so.
        pictures = [torch.from_numpy(picture).permute(2, 0, 1).to(device) for picture in pictures]
        pictures = self._preprocess(pictures, return_tensors=None, **kwargs)["pixel_values"]
        data = {"pixel_values": [picture.contiguous() for picture in pictures]}
        if segmentation_maps is not None:
            kwargs |= {"do_rescale": False, "do_normalize": False, "resample": PILImageResampling.NEAREST, "border": 0}
            masks = [torch.from_numpy(mask[None]).to(device) for mask in mask_arrays(segmentation_maps)]
            masks = self._preprocess(masks, return_tensors=None, **kwargs)["pixel_values"]
            data["labels"] = [mask[0].float() for mask in masks]
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess(self, images, do_letterbox, do_resize, size, resample, border=GREY, **kwargs) -> BatchFeature:
        if do_letterbox:
            images = [self.letterbox(image, size, resample, border) for image in images]
        do_resize = do_resize and not do_letterbox
        return super()._preprocess(images, do_resize=do_resize, size=size, resample=resample, **kwargs)

    def letterbox(self, image: torch.Tensor, size: SizeDict, resample, border: int) -> torch.Tensor:
        """The largest copy of `image` (channels, H, W) that fits `size`, centred on a canvas filled with `border`."""
        top, left, height, width = letterbox_box(*image.shape[1:], (size.height, size.width))
        canvas = image.new_full((len(image), size.height, size.width), border)
        copy = self.resize(image, SizeDict(height=height, width=width), resample)
        canvas[:, top : top + height, left : left + width] = copy
        return canvas


def letterbox_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image lies on its letterbox: the only place that says so, for both backends and for post-processing.

    The image is scaled by r = min(size[0] / height, size[1] / width), its sides are rounded to whole pixels, at least
    one, and it is centred; an odd pixel of border goes to the bottom or to the right.

    Args:
        height, width: of the image.
        size: (height, width) of the canvas, S and S.

    Returns:
        (top, left, new_height, new_width), in pixels of the canvas.
    """
    canvas_height, canvas_width = size
    if height * canvas_width >= width * canvas_height:  # as high as the canvas
        new_height, new_width = canvas_height, max(1, round(width * canvas_height / height))
    else:
        new_height, new_width = max(1, round(height * canvas_width / width)), canvas_width
    return (canvas_height - new_height) // 2, (canvas_width - new_width) // 2, new_height, new_width


def letterbox_size(image_processor) -> tuple[int, int]:
    """The (height, width) of the canvas of an image processor that letterboxes.

    Raises:
        ValueError: its `size` does not say both.
    """
    size = get_size_dict(image_processor.size)
    if set(size) != {"height", "width"}:
        raise ValueError(
            f"A letterbox needs a size of height and width, but the image processor's size is {dict(size)}. Use "
            "size={'height': 416, 'width': 416}, or do_letterbox=False."
        )
    return size["height"], size["width"]


def check_frame(image_processor, settings: dict):
    """Refuse the `settings` of a call that post-processing, which only knows `image_processor`, would not undo.

    Raises:
        ValueError: `do_letterbox` is not the processor's own, or `do_center_crop` or `do_pad` is on; or it is a
            letterbox, and `size` is not the processor's own or `do_resize` is off.
    """
    if settings["do_letterbox"] != image_processor.do_letterbox:
        raise ValueError(
            f"do_letterbox cannot change for one call, because post-processing would not know, but it is "
            f"{settings['do_letterbox']} and the image processor's is {image_processor.do_letterbox}. Set "
            "image_processor.do_letterbox, or load the processor with do_letterbox=…."
        )
    for name in ("do_center_crop", "do_pad"):
        if settings[name]:
            raise ValueError(
                f"Images are neither cropped nor padded, because post-processing lays a mask over the whole image, but "
                f"{name} is {settings[name]}. Leave it out, or crop the images before."
            )
    if not image_processor.do_letterbox:
        return
    height, width = letterbox_size(image_processor)
    size = dict(settings["size"] or {})
    if size != {"height": height, "width": width} or not settings["do_resize"]:
        raise ValueError(
            f"A letterbox is resized to the image processor's own size, ({height}, {width}), because post-processing "
            f"would not know, but size is {size} and do_resize is {settings['do_resize']}. Leave them out, or set "
            "image_processor.size."
        )


def rgb_arrays(images, input_data_format=None) -> list[np.ndarray]:
    """One image, a list of images or a 4-D array of them as a list of uint8 (H_i, W_i, 3): see `rgb_array`."""
    images = in_a_list(images, ndim_of_many=4)
    if not images:
        raise ValueError("At least one image is needed, but the list of images is empty. Give one or more.")
    return [rgb_array(image, f"images[{i}]", input_data_format) for i, image in enumerate(images)]


def rgb_array(image, name: str = "image", input_data_format=None) -> np.ndarray:
    """Any image as its upright RGB pixels, uint8 (H, W, 3), each in 0..255.

    The EXIF orientation is applied, so that a path and an opened image agree; 16-bit grey is scaled to 8 bits;
    transparent pixels are laid over white; of an animation, the frame where it stands is taken: the first, when opened.

    Args:
        image: a path, a URL, a PIL image, a uint8 array (H, W) or (H, W, channels), or a uint8 tensor (H, W) or
            (channels, H, W), with 1 (grey), 3 (RGB) or 4 (RGBA) channels.
        name: what an error calls this image.
        input_data_format: "channels_first" or "channels_last", for an array or tensor laid out the other way.

    Raises:
        ValueError: it is none of these, or its file is missing, damaged, too large or not an image.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        image = _image_from_array(image, name, input_data_format)
        if isinstance(image, np.ndarray):
            return image
    is_file = isinstance(image, str | os.PathLike)
    if not is_file and not isinstance(image, Image.Image):
        raise ValueError(
            f"An image must be a path, a URL, a PIL image, a uint8 array or a uint8 tensor, but {name} is of type "
            f"{type(image).__name__}. Encoded bytes are opened with PIL.Image.open(io.BytesIO(data))."
        )
    file_name = os.fspath(image) if is_file else getattr(image, "filename", "")
    name = f"{name} ({str(file_name)!r})" if file_name else name
    try:
        if not is_file:
            return _upright_rgb(image)
        with Image.open(_download(file_name) if _is_url(file_name) else file_name) as opened:
            return _upright_rgb(opened)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"An image may have at most {2 * Image.MAX_IMAGE_PIXELS:,} pixels, but {name} claims more: {error} Make it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise ValueError(
            f"An image must be one that Pillow can read whole and turn into RGB, but {name} is not: "
            f"{type(error).__name__}: {error} Check that the file exists, is complete and is an image, or leave it out."
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


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """An opened PIL image of any mode as uint8 (H, W, 3), EXIF orientation applied."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert("RGB") would clip: everything above 255 would turn white
        grey = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)  # 65535 / 257 = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} does not say which values are black and white; scale it to 8 bits.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _is_url(source) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _download(url: str) -> BytesIO:
    url = quote(url, safe=string.punctuation)  # letters beyond ASCII, and spaces
    with urlopen(Request(url, headers={"User-Agent": "m3dec"}), timeout=DOWNLOAD_TIMEOUT) as answer:
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


def in_a_list(inputs, ndim_of_many: int) -> list:
    """One input, several in a list or tuple, or several in an array of `ndim_of_many` dimensions, as a list."""
    if isinstance(inputs, list | tuple):
        return list(inputs)
    is_array = isinstance(inputs, np.ndarray | torch.Tensor)
    return list(inputs) if is_array and inputs.ndim == ndim_of_many else [inputs]
