"""An image is found by its name below its folder, and by no name anywhere else."""

import logging

import pytest
from PIL import Image, ImageOps

from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.readers.images import ImageFolder, MissingImagesError, image_size


@pytest.fixture
def root(tmp_path):
    """A folder of images, with one more outside of it."""
    (tmp_path / "images" / "below").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for name in ("images/a.jpg", "images/below/b.jpg", "outside/secret.jpg", "secret.jpg"):
        (tmp_path / name).write_bytes(b"image")
    return tmp_path / "images"


def test_an_image_is_found_in_the_folder_and_below_it(root):
    folder = ImageFolder(root)
    assert folder.find("a.jpg") == str(root / "a.jpg")
    assert folder.find("below/b.jpg") == str(root / "below" / "b.jpg")


@pytest.mark.parametrize("name", ["c.jpg", "below", "below/a.jpg", "A.jpeg", "a.jpg/b.jpg", "x" * 5_000, "a..jpg"])
def test_what_is_no_file_there_is_not_found(root, name):
    assert ImageFolder(root).find(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "{outside}/secret.jpg",
        "/secret.jpg",
        "//secret.jpg",
        "..",
        "../secret.jpg",
        "../images/a.jpg",
        "below/../a.jpg",
        "below/../../secret.jpg",
        "./../secret.jpg",
        "below/..",
        "a.jpg\0",
        "\0",
        "..\\secret.jpg",
        "below\\b.jpg",
        "C:/secret.jpg",
        "C:secret.jpg",
        "file:///secret.jpg",
        "",
        None,
        7,
        b"a.jpg",
        ["a.jpg"],
        {"path": "a.jpg"},
    ],
    ids=repr,
)
def test_a_name_that_leads_out_is_refused(root, name):
    if isinstance(name, str):
        name = name.replace("{outside}", str(root.parent / "outside"))
    with pytest.raises(ReferringDataError, match="an annotation names"):
        ImageFolder(root).find(name)


def test_a_name_that_leads_out_is_refused_by_find_all_too(root):
    for on_missing in ("error", "skip"):
        with pytest.raises(ReferringDataError, match="an annotation names"):
            ImageFolder(root).find_all(["a.jpg", "../secret.jpg"], on_missing)


@pytest.mark.parametrize("name", [None, 7, ["a.jpg"], {"path": "a.jpg"}], ids=repr)
def test_a_name_that_is_no_text_is_refused_by_find_all_too(root, name):
    with pytest.raises(ReferringDataError, match="an annotation names"):
        ImageFolder(root).find_all(["a.jpg", name])


def test_a_link_that_leaves_the_folder_is_refused(root):
    (root / "file.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "relative.jpg").symlink_to("../secret.jpg")
    (root / "folder").symlink_to(root.parent / "outside")
    (root / "below" / "up").symlink_to("../..")
    (root / "twice.jpg").symlink_to("file.jpg")
    folder = ImageFolder(root)
    for name in ("file.jpg", "relative.jpg", "folder/secret.jpg", "below/up/secret.jpg", "twice.jpg"):
        with pytest.raises(ReferringDataError, match="links that leave it"):
            folder.find(name)


def test_a_link_into_a_folder_of_a_longer_name_leaves_the_folder(root):
    (root.parent / "images and more").mkdir()
    (root.parent / "images and more" / "c.jpg").write_bytes(b"image")
    (root / "c.jpg").symlink_to(root.parent / "images and more" / "c.jpg")
    with pytest.raises(ReferringDataError):
        ImageFolder(root).find("c.jpg")


def test_a_link_that_stays_inside_is_followed(root):
    (root / "again.jpg").symlink_to("below/b.jpg")
    (root / "other").symlink_to("below")
    (root / "below" / "up.jpg").symlink_to("../a.jpg")
    folder = ImageFolder(root)
    for name in ("again.jpg", "other/b.jpg", "below/up.jpg"):
        assert folder.find(name) == str(root / name)


def test_a_link_to_nothing_and_one_to_itself_are_not_found(root):
    (root / "nothing.jpg").symlink_to("c.jpg")
    (root / "itself.jpg").symlink_to("itself.jpg")
    folder = ImageFolder(root)
    assert folder.find("nothing.jpg") is folder.find("itself.jpg") is None


def test_the_folder_itself_may_be_a_link(root):
    link = root.parent / "link"
    link.symlink_to(root)
    folder = ImageFolder(link)
    assert folder.find("below/b.jpg") == str(link / "below" / "b.jpg")
    (root / "file.jpg").symlink_to(root.parent / "secret.jpg")
    with pytest.raises(ReferringDataError):
        folder.find("file.jpg")


def test_a_relative_folder_is_found_from_anywhere_later(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    folder = ImageFolder("images")
    monkeypatch.chdir(root)
    assert folder.find("a.jpg") == str(root / "a.jpg")


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("COCO_train2014_000000581857.jpg", "000000581857.jpg"),
        ("000000581857.jpg", "COCO_train2014_000000581857.jpg"),
    ],
)
def test_an_image_of_coco_is_found_by_its_name_of_the_other_year(root, there, asked):
    (root / there).write_bytes(b"image")
    folder = ImageFolder(root)
    assert folder.find(asked) == folder.find(there) == str(root / there)
    assert folder.find(asked.replace("581857", "581858")) is None
    (root / asked).write_bytes(b"image")
    assert folder.find(asked) == str(root / asked)


def test_a_link_by_the_name_of_the_other_year_may_not_leave_the_folder(root):
    (root / "000000581857.jpg").symlink_to(root.parent / "secret.jpg")
    with pytest.raises(ReferringDataError):
        ImageFolder(root).find("COCO_train2014_000000581857.jpg")


@pytest.mark.parametrize("asked", ["COCO_val2014_000000581857.jpg", "581857.jpg", "x000000581857.jpg"])
def test_other_names_have_no_other_year(root, asked):
    (root / "000000581857.jpg").write_bytes(b"image")
    (root / "COCO_train2014_581857.jpg").write_bytes(b"image")
    assert ImageFolder(root).find(asked) is None


def test_missing_images_are_an_error_that_has_all_their_names(root):
    missing = [f"{number:02d}.jpg" for number in range(23)]
    with pytest.raises(MissingImagesError, match=r"23 of 24 images .*00\.jpg, 01\.jpg, 02\.jpg\. Complete") as caught:
        ImageFolder(root).find_all(["a.jpg", *reversed(missing), "a.jpg", "05.jpg"])
    assert caught.value.names == missing
    assert isinstance(caught.value, FileNotFoundError)


def test_missing_images_may_be_left_out_with_a_warning_that_lists_them(root, caplog):
    missing = [f"{number:02d}.jpg" for number in range(23)]
    with caplog.at_level(logging.WARNING):
        found = ImageFolder(root).find_all([*missing, "a.jpg", "below/b.jpg"], "skip")
    assert found == {"a.jpg": str(root / "a.jpg"), "below/b.jpg": str(root / "below" / "b.jpg")}
    (record,) = caplog.records
    assert "23 of 25 images" in record.getMessage()
    assert ", ".join(missing[:20]) + " and 3 more" in record.getMessage()


def test_where_all_images_are_there_nothing_is_said(root, caplog):
    assert ImageFolder(root).find_all(["a.jpg", "a.jpg"], "skip") == {"a.jpg": str(root / "a.jpg")}
    assert ImageFolder(root).find_all([]) == {}
    assert caplog.records == []


def test_another_word_for_what_to_do_with_missing_images_is_an_error(root):
    with pytest.raises(ValueError, match="'error' or 'skip', but it is 'ignore'"):
        ImageFolder(root).find_all(["a.jpg"], "ignore")


@pytest.mark.parametrize("name", ["nowhere", "images/a.jpg"])
def test_a_folder_that_is_none_is_an_error(root, name):
    with pytest.raises(FileNotFoundError, match=rf"{name}, which is not a folder"):
        ImageFolder(root.parent / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9, 90])
def test_the_size_of_an_image_is_that_of_the_image_as_it_is_read(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image_size(str(tmp_path / f"a.{suffix}"), "a") == ImageOps.exif_transpose(image).size[::-1]
