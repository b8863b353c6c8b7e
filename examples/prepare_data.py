"""Check referring data of any kind, look at them, and put them into Parquet shards with the images inside.

    python examples/prepare_data.py --data_root data --dataset refcoco --split_by unc --image_root data/train2014 \\
        --output_dir prepared/refcoco --num_shards 8
    python examples/prepare_data.py --source coco --expressions my/expressions.csv --instances my/instances.json \\
        --image_root my/images --check
    python examples/prepare_data.py --sentences generated --instances my/instances.json --image_root my/images \\
        --mosaics 5000 --output_dir prepared/mine

Writes output_dir/data/*.parquet, which `--source prepared --data_root output_dir` reads and which can be moved or
uploaded as they are; output_dir/summary.json, samples.png (random rows: look at them) and vocabulary.txt (the training
words with their counts). Run again after an interruption, it goes on where it stopped.

With `--sentences generated` nobody has to have written a sentence: they are made from the masks of a COCO instance
file. `--dry_run` prints fifty of them.
"""

import itertools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from PIL import Image
from transformers import HfArgumentParser

from m3dec.examples.user_errors import exits_with_message
from m3dec.processing.drawing import contact_sheet, outline, overlay
from m3dec.processing.referring_data.data_arguments import DataArguments
from m3dec.processing.referring_data.generated.rows import generate_referring_dataset, random_sentences
from m3dec.processing.referring_data.leakage import find_leaks, held_out_images
from m3dec.processing.referring_data.readers.coco_files import find_faults
from m3dec.processing.referring_data.readers.contradictions import find_contradictions
from m3dec.processing.referring_data.readers.prepared_shards import check_images, write_prepared
from m3dec.processing.referring_data.readers.published_counts import PUBLISHED_COUNTS
from m3dec.processing.referring_data.readers.tables import image_ids
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.referring_data.summary import summarise


@dataclass
class PrepareArguments:
    output_dir: str = field(default="outputs/prepared", metadata={"help": "Of the shards; may hold a part of them."})
    num_shards: int = field(
        default=8, metadata={"help": "Files a split: at least as many as processes will read them."}
    )
    check: bool = field(default=False, metadata={"help": "Only read the data and say what is wrong; write nothing."})
    sample_rows: int = field(default=12, metadata={"help": "Random references on samples.png."})
    seed: int = 0
    sentences: str | None = field(
        default=None,
        metadata={"help": "generated: make them from the masks of --instances, photographs in --image_root."},
    )
    words: str | None = field(
        default=None, metadata={"help": "Words for categories of your own, a YAML file like generated/words.yaml."}
    )
    mosaics: int = field(
        default=0, metadata={"help": "Of generated sentences: so many images more, of one to four photographs each."}
    )
    num_proc: int = field(default=1, metadata={"help": "Of generated sentences: the processes that make them."})
    sentences_per_image: int = field(default=16, metadata={"help": "Of generated sentences: at most so many."})
    val_share: float = field(default=0.1, metadata={"help": "Of generated sentences: the photographs of val, by name."})
    dry_run: bool = field(default=False, metadata={"help": "Print fifty generated sentences, and write nothing."})


@exits_with_message
def main(command_line: list[str] | None = None):
    parser = HfArgumentParser((DataArguments, PrepareArguments))
    data, arguments = parser.parse_args_into_dataclasses(command_line)
    if arguments.sentences not in (None, "generated"):
        parser.error(f"--sentences is 'generated', or left out, but it is {arguments.sentences!r}.")
    if arguments.dry_run and arguments.sentences is None:
        parser.error("--dry_run prints generated sentences: add --sentences generated.")
    if arguments.sentences:
        if not data.instances or not data.image_root:
            raise SystemExit("--sentences generated needs --instances and --image_root.")
        data.source = "generated"
        data.warn_of_unread_flags()
    try:
        if arguments.dry_run:
            print_sentences(data, arguments)
        else:
            prepare(data, arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


def prepare(data: DataArguments, arguments: PrepareArguments) -> None:
    """Check the data, or write them and what they are like into the output folder."""
    if arguments.check:
        check_files(data)
    splits = generate(data, arguments) if arguments.sentences else data.load()
    output = Path(arguments.output_dir)
    if arguments.check:
        check_images(splits)
        counts = ", ".join(f"{len(split)} references in {name}" for name, split in splits.items())
        print(f"{data.describe()} is as it should be: {counts}.")
        return
    write_prepared(splits, output, arguments.num_shards, source=data.describe())
    figures, words = {}, {}
    for name, split in splits.items():
        figures[name], words[name] = summarise(split)
    print(table(figures, PUBLISHED_COUNTS.get((data.dataset, data.split_by), {}) if data.source == "refer" else {}))
    if any(values["kinds"] for values in figures.values()):
        print(table_of_kinds(figures))
    (output / "summary.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if "train" in words:
        lines = [f"{word}\t{number}" for word, number in words["train"].most_common()]
        (output / "vocabulary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sheet_of_samples(splits, arguments.sample_rows, arguments.seed).save(output / "samples.png")
    print_leaks(data, splits)
    print(f"Prepared in {output}; look at {output / 'samples.png'}.")


def generate(data: DataArguments, arguments: PrepareArguments) -> datasets.DatasetDict:
    """Splits of sentences made from masks."""
    return generate_referring_dataset(
        data.instances,
        data.image_root,
        arguments.words,
        arguments.mosaics,
        arguments.sentences_per_image,
        arguments.val_share,
        arguments.seed,
        arguments.num_proc,
    )


def print_sentences(data: DataArguments, arguments: PrepareArguments, count: int = 50) -> None:
    """Print `count` sentences of random images, with their kinds and images; nothing is written."""
    sentences = random_sentences(data.instances, data.image_root, arguments.words, arguments.seed)
    for file_name, sentence in itertools.islice(sentences, count):
        print(f"{sentence.kind:16}{sentence.text:60}  {file_name}")


def check_files(data: DataArguments) -> None:
    """Print what is wrong with the files of a source, and end the program there. `load` checks the other sources."""
    file, faults = data.instances, []
    if data.source == "coco" and data.expressions and data.image_root:  # else `load` asks for them
        file = data.expressions
        faults = find_faults(file, data.image_root, data.instances, data.mask_root, data.on_missing)
    elif data.source in ("refer", "grefcoco"):
        file = Path(data.data_root) / data.dataset / "instances.json"
        faults = find_contradictions(file) if file.is_file() else []
    elif data.source == "generated":
        faults = find_contradictions(file)
    if faults:
        counted = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise SystemExit("\n".join([f"{file} has {counted}:", *map(str, faults)]))


def table(figures: dict[str, dict], published: dict) -> str:
    """The figures of all splits as lines of text, with the published counts in parentheses."""
    titles = ["references", "sentences", "images", "words", "most", "> 15", "> 20", "area 5%", "50%", "95%", "empty"]
    lines = [f"{'':12}" + "".join(f"{title:>20}" for title in titles[:2]) + "".join(f"{t:>9}" for t in titles[2:])]
    for split, values in figures.items():
        counted = [values["references"], values["sentences"]]
        beside = [f"({number:,}) " if number else "" for number in published.get(split, (None, None))]
        shares = ("over_15_words", "over_20_words", "area_05", "area_50", "area_95")
        lines.append(
            f"{split:12}"
            + "".join(f"{there + format(here, ','):>20}" for here, there in zip(counted, beside, strict=True))
            + f"{values['images']:9,}{values['words_mean']:9.2f}{values['words_most']:9}"
            + "".join(f"{values[name]:9.1%}" for name in shares)
            + f"{values['empty_masks']:9}"
        )
    return "\n".join([*lines, "(in parentheses: as published)"] if published else lines)


def table_of_kinds(figures: dict[str, dict]) -> str:
    """How many sentences of each kind every split has, and their share."""
    totals = {split: sum(values["kinds"].values()) for split, values in figures.items()}
    kinds = sorted({kind for values in figures.values() for kind in values["kinds"]})
    lines = [f"{'kind':20}" + "".join(f"{split:>20}" for split in figures)]
    for kind in kinds:
        counts = {split: values["kinds"].get(kind, 0) for split, values in figures.items()}
        shares = [f"{number:,} ({number / max(totals[split], 1):6.1%})" for split, number in counts.items()]
        lines.append(f"{kind:20}" + "".join(f"{share:>20}" for share in shares))
    return "\n".join(lines)


def sheet_of_samples(splits: datasets.DatasetDict, count: int, seed: int) -> Image.Image:
    """Random references: the image, its sentences, and the mask over it."""
    everything = [(name, number) for name, split in splits.items() for number in range(len(split))]
    rows = []
    for name, number in sorted(random.Random(seed).sample(everything, min(count, len(everything)))):
        row = splits[name][number]
        image, mask = row["image"].convert("RGB"), decode_mask(row["mask"])
        text = "  /  ".join(sentence["raw"] for sentence in row["sentences"])
        rows.append([image, f"{name} {row['ref_id']}: {text}", outline(overlay(image, mask), mask)])
    return contact_sheet(rows, titles=["image", "sentences", "mask"])


def print_leaks(data: DataArguments, splits: datasets.DatasetDict) -> None:
    """Print which training images are in a val or test split: of the data themselves, and of RefCOCO, + and g."""
    if "train" not in splits:
        return
    held_out = {f"its own {name}": image_ids(split) for name, split in splits.items() if name != "train"}
    if data.source in ("refer", "grefcoco") and data.dataset in ("refcoco", "refcoco+", "refcocog", "grefcoco"):
        others = held_out_images(data.data_root)
        held_out |= {split: ids for split, ids in others.items() if not split.startswith(data.describe())}
    leaks = find_leaks(splits["train"], held_out)
    for name, shared in leaks.items():
        print(f"Leak: {len(shared)} of {len(image_ids(splits['train']))} training images are in {name}.")
    if not leaks:
        print(f"No training image is in {', '.join(held_out) or 'another split'}.")


if __name__ == "__main__":
    main()
