"""A picture and a sentence in, a mask out: one and many of each, in every form they come in."""

import base64
import io
import socket
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from PIL import Image
from pycocotools import mask as coco_mask
from test_processing_m3dec import WORDS, word_processor
from transformers import pipeline

from m3dec.configuration.configuration_m3dec import M3DecConfig
from m3dec.hub import PHOTOS_CHECKPOINT, SHIPPED_CHECKPOINT
from m3dec.modeling_m3dec import M3DecForImageSegmentation
from m3dec.processing.images import rgb_array_and_size
from m3dec.processing.pipeline_m3dec import ReferringImageSegmentationPipeline
from m3dec.processing.processing_m3dec import M3DecProcessor
from m3dec.processing.referring_data.scenes import draw_scene


def tiny_model() -> M3DecForImageSegmentation:
    """The whole network, small and untrained: its answers mean nothing, but differ by image and by expression."""
    torch.manual_seed(0)
    config = M3DecConfig(
        backbone_config={
            "model_type": "timm_backbone",
            "backbone": "test_resnet",
            "out_indices": [2, 3, 4],
            "features_only": True,
        },
        image_size=64,
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=len(WORDS),
        word_vector_size=12,
        mask_decoder_channels=16,
    )
    model = M3DecForImageSegmentation(config).eval()
    images = torch.rand(4, 3, 64, 64)
    model.train()
    with torch.no_grad():  # running statistics of some data, so that evaluation gives logits of both signs
        for _ in range(30):
            model(images, torch.randint(2, len(WORDS), (4, 5)), torch.ones(4, 5, dtype=torch.int64))
    return model.eval()


@pytest.fixture(scope="module")
def pipe() -> ReferringImageSegmentationPipeline:
    return ReferringImageSegmentationPipeline(model=tiny_model(), processor=word_processor(), device="cpu")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_same_answers(ours: list, theirs: list):
    """Equal labels and, but for pixels on the very edge of the threshold, equal masks."""
    assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["mask"].size == other["mask"].size
        assert np.mean(np.asarray(one["mask"]) != np.asarray(other["mask"])) < 0.005
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


@pytest.fixture
def image_passes(pipe):
    """How many images went through the image half, one number for each pass."""
    sizes = []
    hook = pipe.model.model.vision_encoder.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    yield sizes
    hook.remove()


def test_an_answer_is_label_score_and_a_mask_of_the_images_own_size(pipe):
    [answer] = pipe(noise(45, 71), text="the red cup")
    assert list(answer) == ["label", "score", "mask"] and answer["label"] == "the red cup"
    assert answer["mask"].mode == "L" and answer["mask"].size == (71, 45)
    values = set(np.unique(answer["mask"]))
    assert values == {0, 255}  # this model finds some of the image, so that the tests below compare something
    assert type(answer["score"]) is float and 0.5 < answer["score"] <= 1


def test_the_pipeline_is_processor_model_and_post_processing(pipe):
    image = noise(45, 71)
    inputs = pipe.processor(images=image, text=["the red cup", "dog"])
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    expected = pipe.processor.post_process_referring_segmentation(outputs, [(45, 71)] * 2)
    expected = [
        {"label": text, "score": answer["score"], "mask": Image.fromarray(answer["mask"] * np.uint8(255))}
        for text, answer in zip(["the red cup", "dog"], expected, strict=True)
    ]
    assert_same_answers(pipe(image, text=["the red cup", "dog"]), expected)


def test_eight_expressions_encode_the_image_once(pipe, image_passes):
    texts = ["cup", "the red cup", "dog", "left", "a blue cat", "the cat left of the dog", "cat", "blue"]
    answers = pipe(noise(45, 71), text=texts)
    assert image_passes == [1]
    singles = [pipe(noise(45, 71), text=text)[0] for text in texts]
    assert_same_answers(answers, singles)
    masks = {answer["mask"].tobytes() for answer in answers}
    assert len(masks) > 4  # the expressions are not mixed up: they give different masks


def test_batches_of_images_with_different_numbers_of_expressions_give_the_same_answers(pipe, image_passes):
    items = [
        {"image": noise(45, 71, 0), "text": ["the red cup", "dog"]},
        {"image": noise(30, 20, 1), "text": "a blue cat"},
        {"image": noise(64, 64, 2), "text": ["cat", "the cat left of the dog", "left", "red"]},
        {"image": noise(10, 90, 3), "text": ["blue cup"]},
    ]
    together = pipe(items, batch_size=3)
    assert image_passes == [3, 1]
    for ours, item in zip(together, items, strict=True):
        assert_same_answers(ours, pipe(**item))


def test_a_list_of_images_takes_one_text_or_one_each_or_a_list_each(pipe):
    images = [noise(45, 71, 0), noise(30, 20, 1)]
    for texts, each in [
        ("dog", ["dog", "dog"]),
        (["dog", "red cup"], ["dog", "red cup"]),
        ([["dog", "cat"], ["left"]], [["dog", "cat"], ["left"]]),
    ]:
        for ours, image, text in zip(pipe(images, text=texts), images, each, strict=True):
            assert_same_answers(ours, pipe(image, text=text))
    with pytest.raises(ValueError, match="2 images and 3 entries of text"):
        pipe(images, text=["dog", "cat", "left"])
    assert pipe([]) == []


def test_generators_stream_and_are_not_read_ahead(pipe):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield {"image": noise(20, 30, len(taken)), "text": "the cat"}

    answers = iter(pipe(endless()))
    first, second = next(answers), next(answers)
    assert len(taken) <= 3 and first[0]["mask"].size == second[0]["mask"].size == (30, 20)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_datasets_stream(pipe, batch_size):
    rows = {"image": [Image.fromarray(noise(20, 30, i)) for i in range(3)], "text": ["cat", "red cup", "dog"]}
    hub = Dataset.from_dict({**rows, "id": [1, 2, 3]})

    class Torch(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"image": rows["image"][i], "text": rows["text"][i]}

    expected = [pipe(image, text=text) for image, text in zip(rows["image"], rows["text"], strict=True)]
    for dataset in [hub, hub.to_iterable_dataset(), Torch()]:
        for ours, theirs in zip(pipe(dataset, batch_size=batch_size), expected, strict=True):
            assert_same_answers(ours, theirs)


def test_a_dataset_ends_where_its_length_says(pipe):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):  # which never raises an IndexError
            return Image.fromarray(noise(20, 30, i))

    assert len(list(pipe(Images(), text="the cat"))) == 3
    assert len(list(pipe(Images(), text=["cat", "cup", "dog"]))) == 3


def test_an_image_may_be_a_path_a_url_a_pil_image_an_array_or_a_tensor(pipe, tmp_path, monkeypatch):
    array = noise(20, 30)
    Image.fromarray(array).save(tmp_path / "image.png")
    Image.fromarray(array).save(tmp_path / "the кот.png")
    monkeypatch.setenv("no_proxy", "*")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        expected = pipe(array, text="the cat")
        for image in [
            tmp_path / "image.png",
            str(tmp_path / "image.png"),
            f"{address}/image.png",
            f"{address}/the кот.png",
            f"{address}/the%20%D0%BA%D0%BE%D1%82.png",
            Image.fromarray(array),
            torch.from_numpy(array).permute(2, 0, 1),
            f"data:image/png;base64,{base64.b64encode((tmp_path / 'image.png').read_bytes()).decode()}",
            io.BytesIO((tmp_path / "image.png").read_bytes()),
        ]:
            assert pipe(image, text="the cat") == expected
            assert pipe([image], text="the cat") == [expected]
        with pytest.raises(ValueError, match=r"nothing\.png.*404"):
            pipe(f"{address}/nothing.png", text="the cat")
        server.shutdown()


def test_an_open_file_is_an_image_and_stays_open(pipe, tmp_path):
    Image.fromarray(noise(20, 30)).save(tmp_path / "image.png")
    expected = pipe(noise(20, 30), text="the cat")
    with open(tmp_path / "image.png", "rb") as file, tempfile.SpooledTemporaryFile() as upload:
        upload.write(file.read())
        for each in (file, upload):
            assert pipe(each, text="the cat") == expected and pipe(each, text="the cat") == expected
    with pytest.raises(ValueError, match=r"image\.png|read"), open(tmp_path / "image.png", encoding="latin-1") as text:
        pipe(text, text="the cat")


def test_a_server_that_does_not_answer_is_waited_for_as_long_as_timeout_says(pipe, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/image.png"
        for call in (
            lambda: pipe(url, text="the cat", timeout=0.1),
            lambda: pipe.processor(images=url, text="the cat", timeout=0.1),
            lambda: pipe.processor(images=url, images_kwargs={"timeout": 0.1}),
            lambda: pipe.processor.image_processor(url, timeout=0.1),
        ):
            with pytest.raises(ValueError, match="timed out"):
                call()


def test_several_images_may_come_in_a_tuple_column_series_or_array(pipe, tmp_path):
    images = [noise(20, 30, seed) for seed in range(2)]
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    texts = ["the cat", "red cup"]
    expected = [pipe(image, text=text) for image, text in zip(images, texts, strict=True)]
    shared = [pipe(image, text="the cat") for image in images]
    column = Dataset.from_dict({"image": paths, "text": texts})
    for several, about in [
        (tuple(paths), tuple(texts)),
        (np.array(paths), np.array(texts)),
        (np.stack(images), texts),
        (pandas.Series(paths, index=[5, 2]), pandas.Series(texts, index=[1, 0])),
        (column["image"], column["text"]),
        (column.cast_column("image", datasets.Image())["image"], column["text"]),
    ]:
        assert pipe(several, text=about) == expected
        assert pipe(several, text="the cat") == shared
        assert [answer["label"] for answer in pipe(images[0], text=about)] == texts
    assert pipe(tuple({"image": i, "text": t} for i, t in zip(images, texts, strict=True))) == expected


def test_a_mask_comes_as_an_image_an_array_or_run_lengths_and_the_score_may_be_left_out(pipe):
    image = noise(45, 71)
    texts = ["the red cup", "dog"]
    images = pipe(image, text=texts)
    assert pipe(image, text=texts, mask_format="image", return_scores=True) == images
    arrays = pipe(image, text=texts, mask_format="array")
    runs = pipe(image, text=texts, mask_format="rle", return_scores=False)
    for one, array, run in zip(images, arrays, runs, strict=True):
        assert array["mask"].dtype == bool and np.array_equal(array["mask"] * 255, np.asarray(one["mask"]))
        assert np.array_equal(coco_mask.decode(run["mask"]), array["mask"])
        assert array["score"] == one["score"] and list(run) == ["label", "mask"]
    with pytest.raises(ValueError, match="'image', 'array' or 'rle', but it is 'png'"):
        pipe(image, text="dog", mask_format="png")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_fast_decoded_jpeg_is_read_at_a_part_of_its_size_and_its_mask_has_the_whole(pipe, tmp_path, orientation):
    """The network of these tests sees 64 x 64 pixels, and an eighth of this image is at least twice that."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = Image.fromarray(noise(13, 17)).resize((1300, 1100), Image.Resampling.BICUBIC)
    large.save(tmp_path / "image.jpg", exif=exif, quality=95)
    large.save(tmp_path / "image.png")
    shape = (1100, 1300) if orientation == 1 else (1300, 1100)
    array, size = rgb_array_and_size(tmp_path / "image.jpg", at_least=(128, 128))
    assert size == shape and array.shape == (*(-(-side // 8) for side in shape), 3)
    assert rgb_array_and_size(tmp_path / "image.jpg", at_least=(1300, 1300))[0].shape[:2] == shape
    [exact], [fast] = (pipe(tmp_path / "image.jpg", text="the cup", fast_decode=fast) for fast in (False, True))
    assert fast["mask"].size == exact["mask"].size == shape[::-1] and exact["mask"].getbbox()
    assert 0 < np.mean(np.asarray(fast["mask"]) != np.asarray(exact["mask"])) < 0.02
    opened = Image.open(tmp_path / "image.jpg")
    for as_before in (tmp_path / "image.png", opened):
        assert pipe(as_before, text="the cup", fast_decode=True) == pipe(as_before, text="the cup")


def test_the_threshold_can_be_set_for_a_call_or_for_the_pipeline(pipe):
    image = noise(45, 71)
    area = [np.mean(np.asarray(pipe(image, text="cup", threshold=t)[0]["mask"]) > 0) for t in (0.05, 0.5, 0.95)]
    assert area[0] > area[1] > area[2]
    strict = ReferringImageSegmentationPipeline(pipe.model, processor=pipe.processor, device="cpu", threshold=0.95)
    assert strict(image, text="cup") == pipe(image, text="cup", threshold=0.95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        pipe(image, text="cup", threshold=50)


def test_without_a_model_the_pipeline_answers_with_the_checkpoint_for_photographs():
    by_default = pipeline("referring-image-segmentation", device="cpu")
    assert by_default.model.name_or_path == str(PHOTOS_CHECKPOINT)
    named = pipeline("referring-image-segmentation", model=PHOTOS_CHECKPOINT, device="cpu")
    assert by_default(noise(45, 71), text="the cat") == named(noise(45, 71), text="the cat")


def test_the_checkpoint_for_photographs_computes_in_float32_whatever_its_file_holds():
    """The dtype is the one that config.json names; in bfloat16, a CPU is many times slower."""
    assert M3DecForImageSegmentation.from_pretrained(PHOTOS_CHECKPOINT).dtype == torch.float32


def test_a_model_in_training_mode_is_refused_and_none_of_its_statistics_changes(pipe):
    """A training leaves its model in that mode."""
    training = ReferringImageSegmentationPipeline(tiny_model().train(), processor=pipe.processor, device="cpu")
    before = {name: tensor.clone() for name, tensor in training.model.named_buffers()}
    with pytest.raises(ValueError, match=r"in training mode: dropout would .* Call model.eval\(\) first"):
        training(noise(45, 71), text="the red cup")
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.model.named_buffers())
    training.model.eval()
    assert training(noise(45, 71), text="the red cup") == pipe(noise(45, 71), text="the red cup")


def test_weights_in_bfloat16_take_images_as_they_are(pipe):
    half = ReferringImageSegmentationPipeline(tiny_model().bfloat16(), processor=pipe.processor, device="cpu")
    [answer] = half(noise(45, 71), text="the red cup")
    assert answer["mask"].size == (71, 45) and np.isfinite(answer["score"])


def test_saving_keeps_the_processor_with_the_model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    again = ReferringImageSegmentationPipeline(
        M3DecForImageSegmentation.from_pretrained(tmp_path),
        processor=M3DecProcessor(
            type(pipe.processor.image_processor).from_pretrained(tmp_path), pipe.processor.tokenizer
        ),
        device="cpu",
    )
    assert again(noise(45, 71), text="the red cup") == pipe(noise(45, 71), text="the red cup")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((noise(4, 4),), "text is None"),
        (("photo.jpg",), "text is None"),
        (([noise(4, 4)],), "dict with 'image' and 'text'"),
        (({"image": noise(4, 4)},), "dict with 'image' and 'text'"),
        (({"image": noise(4, 4), "text": None},), "dict with 'image' and 'text'"),
        ((None, "cat"), "of type NoneType"),
        ((b"bytes", "cat"), "of type bytes"),
        (([noise(4, 4), None], "cat"), "of type NoneType"),
        ((noise(4, 4), ["cat", None]), "strings only"),
        ((noise(4, 4), []), "at least one"),
        ((noise(4, 4), 5), "must be an expression"),
    ],
)
def test_what_is_missing_is_named(pipe, inputs, message):
    with pytest.raises(ValueError, match=message):
        pipe(*inputs)


def shipped_pipe(do_letterbox: bool) -> ReferringImageSegmentationPipeline:
    """The checkpoint of this package, 160 x 160, which was trained without a letterbox."""
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT)
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)
    assert processor.image_processor.do_letterbox is False
    processor.image_processor.do_letterbox = do_letterbox
    return ReferringImageSegmentationPipeline(model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def letterbox_pipe() -> ReferringImageSegmentationPipeline:
    return shipped_pipe(do_letterbox=True)


def test_a_letterboxed_picture_is_answered_as_its_square_with_a_grey_border(letterbox_pipe):
    scene = draw_scene(seed=5)
    wide = np.asarray(scene.image)[29:131]  # (102, 160): it covers rows 29 to 131 of the letterbox, in whole pixels
    square = np.full((160, 160, 3), 128, np.uint8)
    square[29:131] = wide
    texts = [expression.sent for expression in scene.expressions][:4]
    # A logit is two pixels high. The box starts and ends in the middle of one, so that no logit that is all border is
    # near enough to the picture to be replaced.
    expected = shipped_pipe(do_letterbox=False)(square, text=texts)
    ours = letterbox_pipe(wide, text=texts)
    assert any(np.asarray(entry["mask"]).any() for entry in ours)
    for one, other in zip(ours, expected, strict=True):
        assert one["mask"].size == (160, 102)
        np.testing.assert_array_equal(one["mask"], np.asarray(other["mask"])[29:131])


def test_a_square_picture_of_the_networks_size_is_the_same_with_and_without_letterbox(letterbox_pipe):
    scene = draw_scene(seed=6)
    text = scene.expressions[0].sent
    assert letterbox_pipe(scene.image, text=text) == shipped_pipe(do_letterbox=False)(scene.image, text=text)


def test_letterboxed_masks_have_their_pictures_own_sizes_alone_and_in_batches(letterbox_pipe, tmp_path):
    images = [noise(45, 171, 0), noise(300, 20, 1), noise(1, 50, 2)]
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(noise(20, 60)).save(tmp_path / "turned.png", exif=exif)
    items = [{"image": image, "text": ["the red circle", "star"]} for image in [*images, tmp_path / "turned.png"]]
    together = letterbox_pipe(items, batch_size=4)
    for ours, item, size in zip(together, items, [(171, 45), (20, 300), (50, 1), (20, 60)], strict=True):
        assert [entry["mask"].size for entry in ours] == [size, size]
        assert_same_answers(ours, letterbox_pipe(**item))


def test_saving_a_pipeline_keeps_its_letterbox(letterbox_pipe, tmp_path):
    letterbox_pipe.save_pretrained(tmp_path)
    again = ReferringImageSegmentationPipeline(
        M3DecForImageSegmentation.from_pretrained(tmp_path),
        processor=M3DecProcessor.from_pretrained(tmp_path),
        device="cpu",
    )
    assert again.processor.image_processor.do_letterbox is True
    image = noise(45, 171)
    assert again(image, text="the red circle") == letterbox_pipe(image, text="the red circle")
