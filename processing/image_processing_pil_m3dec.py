"""The image processor once more, on PIL and NumPy: what transformers takes with `backend="pil"`."""

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict

from .image_processing_m3dec import M3DecImageProcessorKwargs, M3DecImageSettings
from .images import mask_arrays, rgb_arrays
from .letterbox import GRAY, check_frame, letterbox_box


class M3DecImageProcessorPil(M3DecImageSettings, PilBackend):
    """`M3DecImageProcessor` without torchvision: same settings, same files, pixels within one gray level of it."""

    valid_kwargs = M3DecImageProcessorKwargs

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, input_data_format, timeout, return_tensors, **kwargs
    ) -> BatchFeature:
        check_frame(self, kwargs)
        arrays = [array.transpose(2, 0, 1) for array in rgb_arrays(images, input_data_format, timeout)]
        data = {"pixel_values": self._preprocess(arrays, return_tensors=None, **kwargs)["pixel_values"]}
        if segmentation_maps is not None:
            kwargs |= {"do_rescale": False, "do_normalize": False, "resample": PILImageResampling.NEAREST, "border": 0}
            masks = [mask[None] for mask in mask_arrays(segmentation_maps)]
            masks = self._preprocess(masks, return_tensors=None, **kwargs)["pixel_values"]
            data["labels"] = [mask[0].astype(np.float32) for mask in masks]
        return BatchFeature(data, tensor_type=return_tensors)

    def _preprocess(self, images, do_letterbox, do_resize, size, resample, border=GRAY, **kwargs) -> BatchFeature:
        if do_letterbox:
            images = [self.letterbox(image, size, resample, border) for image in images]
        do_resize = do_resize and not do_letterbox
        return super()._preprocess(images, do_resize=do_resize, size=size, resample=resample, **kwargs)

    def letterbox(self, image: np.ndarray, size: SizeDict, resample, border: int) -> np.ndarray:
        """The largest copy of `image` (channels, H, W) that fits `size`, centred on a canvas filled with `border`."""
        top, left, height, width = letterbox_box(*image.shape[1:], (size.height, size.width))
        canvas = np.full((len(image), size.height, size.width), border, image.dtype)
        copy = self.resize(image, SizeDict(height=height, width=width), resample)
        canvas[:, top : top + height, left : left + width] = copy
        return canvas
