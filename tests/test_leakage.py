"""Images that are trained on and tested on."""

import pickle

import datasets
from test_sampling import table

from m3dec.processing.referring_data.leakage import find_leaks, held_out_images


def of_images(*image_ids) -> datasets.Dataset:
    """One reference for each of the images 5, 7 and 9 that are asked for."""
    first = {5: 0, 7: 1, 9: 4}
    return table().select([first[image_id] for image_id in image_ids])


def write_refs(root, dataset, split_by, **splits):
    refs = [
        {"ref_id": 10 * image_id, "ann_id": 1, "image_id": image_id, "split": split, "sentences": []}
        for split, images in splits.items()
        for image_id in images
    ]
    (root / dataset).mkdir()
    (root / dataset / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def test_images_of_every_val_and_test_split_are_found_by_the_refs_files_alone(tmp_path, caplog):
    write_refs(tmp_path, "refcoco", "unc", train=[1, 2], val=[5], testA=[6], testB=[7])
    write_refs(tmp_path, "refcocog", "umd", train=[5], val=[8], test=[9])
    assert held_out_images(tmp_path) == {
        "refcoco (unc) val": {5},
        "refcoco (unc) testA": {6},
        "refcoco (unc) testB": {7},
        "refcocog (umd) val": {8},
        "refcocog (umd) test": {9},
    }
    assert "refcoco+" in caplog.text  # is not there


def test_a_leak_is_named_by_the_split_that_holds_the_image():
    held_out = {"a val": {5, 100}, "a test": {7, 9}, "b val": {200}}
    assert find_leaks(of_images(5, 9), held_out) == {"a val": {5}, "a test": {9}}


def test_without_a_leak_none_is_named():
    assert find_leaks(of_images(5, 7, 9), {}) == find_leaks(of_images(5, 7, 9), {"val": {1, 2}}) == {}
