"""transformers' own tests of processors, image processors and pipelines hold for m3dec's."""

import unittest

import pytest
from transformers_tests import common_tests, failures

from m3dec.hub import PHOTOS_CHECKPOINT, SHIPPED_CHECKPOINT
from m3dec.processing.image_processing_m3dec import M3DecImageProcessor
from m3dec.processing.image_processing_pil_m3dec import M3DecImageProcessorPil
from m3dec.processing.processing_m3dec import M3DecProcessor

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("checkpoint", [SHIPPED_CHECKPOINT, PHOTOS_CHECKPOINT], ids=["word vectors", "BERT"])
def test_the_processor_is_one_as_transformers_tests_them(request, checkpoint):
    common = common_tests("test_processing_common", request.config.cache)

    class Processors(common.ProcessorTesterMixin, unittest.TestCase):
        processor_class = M3DecProcessor
        model_id = str(checkpoint)

        @staticmethod
        def prepare_processor_dict():
            return {"max_words": 200}  # the tests ask for up to 117 words

    assert failures(Processors) == {}


def test_the_image_processors_are_ones_as_transformers_tests_them(request):
    common = common_tests("test_image_processing_common", request.config.cache)

    class Tester(common.ImageProcessingTester):
        def __init__(self, parent):
            super().__init__(parent, size={"height": 20, "width": 18})

        def _get_image_processing_classes(self):
            return {"torchvision": M3DecImageProcessor, "pil": M3DecImageProcessorPil}

    class ImageProcessors(common.ImageProcessingTestMixin, unittest.TestCase):
        image_processor_tester_class = Tester

    # It wants four channels out where four came in. Here a fourth is alpha, laid over white: the network reads RGB.
    assert failures(ImageProcessors).keys() == {"test_call_numpy_4_channels"}
