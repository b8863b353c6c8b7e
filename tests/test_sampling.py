"""Which sentences are seen when: the same whoever asks."""

import math
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader

from m3dec.processing.referring_data import REFERRING_FEATURES
from m3dec.processing.referring_data.sampling import (
    ReferringExamples,
    ShuffledByEpoch,
    references_by_image,
    usable_sentences,
)
from m3dec.processing.referring_data.schema import encode_mask

# ref_id → image_id, number of sentences; images are not neighbours in the table
REFERENCES = {11: (5, 3), 12: (7, 1), 13: (5, 4), 14: (5, 2), 15: (9, 3), 16: (7, 5)}


def table(texts=None) -> datasets.Dataset:
    rows = []
    for ref_id, (image_id, count) in REFERENCES.items():
        mask = np.zeros((7, 11), bool)
        mask[1:3, ref_id - 11] = True
        rows.append(
            {
                "image": Image.new("RGB", (11, 7), (image_id, 0, 0)),
                "image_id": image_id,
                "ref_id": ref_id,
                "ann_id": [ref_id],
                "category_id": 1,
                "file_name": f"{image_id}.png",
                "height": 7,
                "width": 11,
                "bbox": [0.0, 1.0, 2.0, 3.0],
                "sentences": [
                    {"sent_id": 100 * ref_id + n, "raw": f"Thing {ref_id}-{n}", "sent": f"thing {ref_id} {n}"}
                    | {"category": None}
                    for n in range(count)
                ],
                "mask": encode_mask(mask),
            }
        )
    for ref_id, place, text in texts or ():
        rows[ref_id - 11]["sentences"][place]["sent"] = text
    return datasets.Dataset.from_list(rows, features=REFERRING_FEATURES)


def seen(examples: ReferringExamples, epoch: int, **loading) -> list[tuple]:
    """Everything an epoch gives, in order."""
    examples.set_epoch(epoch)
    loader = DataLoader(examples, batch_size=None, **loading)
    return [
        (tuple(e["ref_ids"]), tuple(e["sent_ids"]), tuple(e["text"]), e["image"].getpixel((0, 0))[0]) for e in loader
    ]


def test_an_epoch_has_every_reference_once_with_one_of_its_sentences():
    examples = ReferringExamples(table(), seed=3)
    for epoch in range(4):
        ref_ids = [ref_id for refs, *_ in seen(examples, epoch) for ref_id in refs]
        assert sorted(ref_ids) == sorted(REFERENCES)
    for refs, sentences, texts, _ in seen(examples, 0):
        assert [sent_id // 100 for sent_id in sentences] == list(refs)
        assert list(texts) == [f"thing {sent_id // 100} {sent_id % 100}" for sent_id in sentences]


def test_over_many_epochs_every_sentence_is_drawn_about_equally_often():
    examples, drawn = ReferringExamples(table(), seed=0), Counter()
    for epoch in range(600):
        examples.set_epoch(epoch)
        for number in range(len(examples)):
            drawn.update(examples[number]["sent_ids"])
    for ref_id, (_, count) in REFERENCES.items():
        for n in range(count):
            assert drawn[100 * ref_id + n] == pytest.approx(600 / count, abs=4 * np.sqrt(600 / 4))


def test_what_is_drawn_depends_on_seed_epoch_and_reference_alone():
    whole = seen(ReferringExamples(table(), seed=1), 2)
    assert seen(ReferringExamples(table(), seed=1), 2) == whole
    assert seen(ReferringExamples(table(), seed=2), 2) != whole
    assert seen(ReferringExamples(table(), seed=1), 3) != whole
    drawn = {ref_id: sent_id for refs, sents, *_ in whole for ref_id, sent_id in zip(refs, sents, strict=True)}
    part = table().select([4, 1, 2])  # another table, another order
    for refs, sents, *_ in seen(ReferringExamples(part, seed=1), 2):
        assert [drawn[ref_id] for ref_id in refs] == list(sents)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(persistent):
    alone, examples = ReferringExamples(table(), seed=5), ReferringExamples(table(), seed=5)
    loader = DataLoader(examples, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in range(3):
        examples.set_epoch(epoch)
        assert [e["sent_ids"] for e in loader] == [list(sents) for _, sents, *_ in seen(alone, epoch)]


def test_processes_and_resumes_change_nothing():
    """An epoch asked for out of order, from its middle, in a fresh process, is the same."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from test_sampling import ReferringExamples, table
examples = ReferringExamples(table(), seed=5)
examples.set_epoch(7)
print([examples[n]["sent_ids"] for n in reversed(range(len(examples)))])
"""
    command = [sys.executable, "-c", code, Path(__file__).parent]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = [list(sents) for _, sents, *_ in seen(ReferringExamples(table(), seed=5), 7)]
    assert there == str(here[::-1])


def test_the_order_of_an_epoch_is_another_each_time_and_depends_on_seed_and_epoch_alone():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        examples = ReferringExamples(table(), seed=seed)
        examples.set_epoch(epoch)
        torch.manual_seed(len(orders))  # changes nothing
        orders.append(list(ShuffledByEpoch(examples)))
        assert sorted(orders[-1]) == list(range(len(examples))) == list(range(len(ShuffledByEpoch(examples))))
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_step_of_all_processes_together_takes_the_same_examples(processes):
    examples = ReferringExamples(table(), seed=4)
    batches = BatchSampler(ShuffledByEpoch(examples), batch_size=6 // processes, drop_last=True)
    shards = [BatchSamplerShard(batches, processes, rank) for rank in range(processes)]
    assert [list(chain.from_iterable(parts)) for parts in zip(*shards, strict=True)] == [
        list(ShuffledByEpoch(examples))
    ]


def test_all_sentences_are_seen_once_an_epoch():
    examples = ReferringExamples(table(), sentences="all", expressions_per_image=2)
    sent_ids = [sent_id for _, sents, *_ in seen(examples, 0) for sent_id in sents]
    assert sorted(sent_ids) == sorted(
        100 * ref_id + n for ref_id, (_, count) in REFERENCES.items() for n in range(count)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sentences_that_share_an_example_share_its_image(size):
    for sentences in ("one", "all"):
        groups = seen(ReferringExamples(table(), sentences=sentences, expressions_per_image=size), 0)
        for refs, _, _, image in groups:
            assert {REFERENCES[ref_id][0] for ref_id in refs} == {image}
            assert len(refs) <= size


def test_the_mask_is_that_of_the_reference():
    for example in ReferringExamples(table(), expressions_per_image=3):
        for ref_id, mask in zip(example["ref_ids"], example["masks"], strict=True):
            assert mask.dtype == bool
            assert mask[1:3, ref_id - 11].all()
            assert mask.sum() == 2


def test_sentences_without_a_word_are_left_out_and_counted(caplog):
    texts = [(11, 0, "..."), (12, 0, "🙂"), (13, 1, "!"), (13, 3, "жёлтый")]
    examples = ReferringExamples(table(texts), sentences="all")
    assert "3 of 18 sentences hold no word" in caplog.text
    sent_ids = [sent_id for _, sents, *_ in seen(examples, 0) for sent_id in sents]
    assert set(sent_ids).isdisjoint({1100, 1200, 1301})
    assert 1303 in sent_ids
    drawn = ReferringExamples(table(texts))  # a reference whose only sentence has no word is not drawn
    assert {ref_id for refs, *_ in seen(drawn, 0) for ref_id in refs} == set(REFERENCES) - {12}


def test_usable_sentences_and_groups_respect_a_selection_of_rows():
    part = table([(13, 1, "?")]).select([2, 0])
    assert usable_sentences(part, "sent", lambda text: False) == [[0, 2, 3], [0, 1, 2]]
    assert references_by_image(table().select([1, 0, 5])) == {(7, "7.png"): [0, 2], (5, "5.png"): [1]}


def shown(examples: ReferringExamples, epoch: int) -> Counter:
    """How often an epoch shows each reference."""
    return Counter(ref_id for refs, *_ in seen(examples, epoch) for ref_id in refs)


@pytest.mark.parametrize("sentences", ["one", "all"])
def test_of_a_set_with_the_weight_a_quarter_an_epoch_shows_a_quarter_and_four_epochs_every_example_once(sentences):
    dataset = datasets.concatenate_datasets([table()] * 4 + [table()])
    examples = ReferringExamples(dataset, sentences=sentences, seed=2, sets=[(24, 0.25), (6, 1.0)])
    whole = len(ReferringExamples(table(), sentences=sentences))
    assert len(examples) == len(ShuffledByEpoch(examples)) == 2 * whole
    total, quarters = Counter(), set()
    for epoch in range(4):
        examples.set_epoch(epoch)
        quarter = [examples.group_at(place)[0][0] for place in range(whole)]
        assert len({tuple(map(tuple, [one])) for one in quarter}) == whole  # none twice in one epoch
        total.update(quarter)
        quarters.add(frozenset(quarter))
        assert [examples.group_at(whole + place)[0][0][0] >= 24 for place in range(whole)] == [True] * whole
    assert set(total.values()) == {1} and len(total) == 4 * whole and len(quarters) == 4
    examples.set_epoch(4)
    assert frozenset(examples.group_at(place)[0][0] for place in range(whole)) in quarters  # from the beginning again


def test_of_a_set_with_the_weight_two_an_epoch_shows_every_example_twice_with_sentences_drawn_anew():
    examples = ReferringExamples(table(), sets=[(6, 2.0)])
    assert len(examples) == 12 and shown(examples, 0) == dict.fromkeys(REFERENCES, 2)
    twice = [[examples[place]["sent_ids"], examples[place + 6]["sent_ids"]] for place in range(6)]
    assert any(one != other for one, other in twice)
    alone = ReferringExamples(table())
    assert [one for one, _ in twice] == [alone[place]["sent_ids"] for place in range(6)]


@pytest.mark.parametrize(("weight", "length"), [(1.0, 6), (1.5, 9), (0.5, 3), (0.01, 1), (0.99, 6), (3.0, 18)])
def test_a_weight_times_the_number_of_examples_is_the_length_of_every_epoch(weight, length):
    examples = ReferringExamples(table(), sets=[(6, weight)])
    for epoch in range(3):
        counts = shown(examples, epoch)
        assert counts.total() == length == len(examples)
        assert {counts[ref_id] for ref_id in REFERENCES} <= {math.floor(weight), math.ceil(weight)}
    with pytest.raises(IndexError, match=f"An epoch has {length} examples"):
        examples[length]


def test_weights_of_one_change_nothing():
    alone, two = ReferringExamples(table(), seed=1), ReferringExamples(table(), seed=1, sets=[(6, 1.0)])
    assert [seen(two, epoch) for epoch in range(2)] == [seen(alone, epoch) for epoch in range(2)]
    assert list(ShuffledByEpoch(two)) == list(ShuffledByEpoch(alone))


def test_a_weighted_epoch_is_the_same_in_workers_out_of_order_and_from_its_middle():
    dataset = datasets.concatenate_datasets([table(), table()])
    options = {"seed": 5, "sets": [(6, 0.5), (6, 2.5)]}
    alone, examples = ReferringExamples(dataset, **options), ReferringExamples(dataset, **options)
    loader = DataLoader(examples, batch_size=None, num_workers=2, persistent_workers=True)
    orders = {}
    for epoch in (3, 0, 1):
        expected = seen(alone, epoch)
        examples.set_epoch(epoch)
        assert [e["sent_ids"] for e in loader] == [list(sents) for _, sents, *_ in expected]
        orders[epoch] = list(ShuffledByEpoch(examples))
        rest = ShuffledByEpoch(examples)
        rest.start = 7
        assert list(rest) == orders[epoch][7:] and len(rest) == len(orders[epoch]) - 7
    assert len(set(map(tuple, orders.values()))) == 3


def test_a_set_without_a_sentence_that_can_be_asked_is_shown_never():
    silent = [(ref_id, place, "...") for ref_id, (_, count) in REFERENCES.items() for place in range(count)]
    dataset = datasets.concatenate_datasets([table(), table(silent), table()])
    examples = ReferringExamples(dataset, sets=[(6, 1.0), (6, 0.25), (6, 1.0)])
    assert len(examples) == 12 and shown(examples, 0) == dict.fromkeys(REFERENCES, 2)


@pytest.mark.parametrize(
    ("sets", "message"),
    [([(5, 1.0)], r"\[5\] are given for 6"), ([(6, 0.0)], r"above 0.*\[0.0\]"), ([(6, float("nan"))], "above 0")],
)
def test_sets_that_are_not_those_of_the_table_are_refused(sets, message):
    with pytest.raises(ValueError, match=message):
        ReferringExamples(table(), sets=sets)


def test_another_word_for_sentences_is_refused():
    with pytest.raises(ValueError, match=r"'one'.*'all'.*'some'"):
        ReferringExamples(table(), sentences="some")
