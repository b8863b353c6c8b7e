"""Images and masks to tensors: any kind of image in, `pixel_values` and `labels` out (§ III, Fig. 2: the input)."""

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

from .images import mask_arrays, rgb_arrays
from .letterbox import GRAY, check_frame, letterbox_box


class M3DecImagesKwargs(ImagesKwargs, total=False):
    """The settings of every image processor, whether ours keeps an image's proportions, and how long it waits."""

    do_letterbox: bool | None
    timeout: float | None


M3DecImageProcessorKwargs = M3DecImagesKwargs  # by this name transformers' own tests look for it


class M3DecImageSettings:
    """What both image processors, this file's and that on Pillow, have in common: settings and the documented call."""

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
            kwargs: `M3DecImagesKwargs`; what is not given is as the image processor was made.

        Returns:
            pixel_values: (B, 3, S, S) float32, normalized per channel.
            labels: (N, S, S) float32, 0.0 or 1.0, in the frame of pixel_values: 0.0 on a letterbox's border. Absent
                without segmentation_maps.

        Raises:
            ValueError: an image cannot be read, a mask is not binary, or this call asks for another frame than
                post-processing will undo: see `check_frame`.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)


class M3DecImageProcessor(M3DecImageSettings, TorchvisionBackend):
    """Stretch images to S x S, bring them to 0..1, normalize them; stretch masks with them, by nearest neighbour.

    The defaults are § IV-A's 416 px and Darknet's own convention, RGB/255 without mean and standard deviation. Another
    backbone's `image_mean` and `image_std` are given here, and are saved and loaded with everything else.

    With `do_letterbox=True` proportions are kept, as VLT and CRIS do: the largest copy that fits is centred on an S x S
    canvas, whose border is gray, and 0 in masks. `post_process_referring_segmentation` cuts the border off again, so
    the mode and `size` belong to the processor: set them where it is made or loaded, not for one call.
    """

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, input_data_format, timeout, return_tensors, device=None, **kwargs
    ) -> BatchFeature:
        check_frame(self, kwargs)
        arrays = rgb_arrays(images, input_data_format, timeout)
        arrays = [array if min(array.strides) > 0 else array.copy() for array in arrays]  # turned by NumPy
        arrays = [np.require(array, requirements=["C", "W"]) for array in arrays]
        # Channels stay last in memory until all is done: torch resizes bytes twice as fast so.
        tensors = [torch.from_numpy(array).permute(2, 0, 1).to(device) for array in arrays]
        tensors = self._preprocess(tensors, return_tensors=None, **kwargs)["pixel_values"]
        data = {"pixel_values": [tensor.contiguous() for tensor in tensors]}
        if segmentation_maps is not None:
            kwargs |= {"do_rescale": False, "do_normalize": False, "resample": PILImageResampling.NEAREST, "border": 0}
            masks = [torch.from_numpy(mask[None]).to(device) for mask in mask_arrays(segmentation_maps)]
            masks = self._preprocess(masks, return_tensors=None, **kwargs)["pixel_values"]
            data["labels"] = [mask[0].float() for mask in masks]
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess(self, images, do_letterbox, do_resize, size, resample, border=GRAY, **kwargs) -> BatchFeature:
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
