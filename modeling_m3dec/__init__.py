"""m3dec: referring image segmentation by Multi-Modal Mutual Attention and Iterative Interaction.

Importing this package registers the model, its processor and its pipeline with transformers. A pipeline for which no
model is named answers with the checkpoint for photographs that ships with the package.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageSegmentation, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from m3dec.configuration.configuration_m3dec import M3DecConfig
from m3dec.configuration.shipped_checkpoints import PHOTOS_CHECKPOINT
from m3dec.processing.image_processing_m3dec import M3DecImageProcessor
from m3dec.processing.image_processing_pil_m3dec import M3DecImageProcessorPil
from m3dec.processing.pipeline_m3dec import ReferringImageSegmentationPipeline
from m3dec.processing.processing_m3dec import M3DecProcessor

from .modeling_m3dec import M3DecForImageSegmentation, M3DecModel

__version__ = "0.1.0"

AutoConfig.register("m3dec", M3DecConfig)
AutoModel.register(M3DecConfig, M3DecModel)
AutoModelForImageSegmentation.register(M3DecConfig, M3DecForImageSegmentation)
AutoProcessor.register(M3DecConfig, M3DecProcessor)
AutoImageProcessor.register(
    M3DecConfig, image_processor_classes={"torchvision": M3DecImageProcessor, "pil": M3DecImageProcessorPil}
)
PIPELINE_REGISTRY.register_pipeline(
    "referring-image-segmentation",
    pipeline_class=ReferringImageSegmentationPipeline,
    pt_model=AutoModelForImageSegmentation,
    default={"model": (str(PHOTOS_CHECKPOINT), "main")},  # model and revision; a folder has but one
    type="multimodal",
)

__all__ = [
    "M3DecConfig",
    "M3DecForImageSegmentation",
    "M3DecImageProcessor",
    "M3DecImageProcessorPil",
    "M3DecModel",
    "M3DecProcessor",
    "ReferringImageSegmentationPipeline",
]
