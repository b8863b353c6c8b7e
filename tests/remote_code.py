"""A process of its own that loads a model by Auto classes and by the pipeline, with or without the package m3dec.

    python remote_code.py MODEL OUTPUT.npz PICTURE [--installed] [--revision R] [--save_again FOLDER]

Writes the logits and masks for two expressions and, as JSON on the last line, where each class came from.
"""

import json
import sys
from argparse import ArgumentParser


class WithoutPackage:
    """As if m3dec had never been installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "m3dec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main():
    parser = ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("picture")
    parser.add_argument("--installed", action="store_true")
    parser.add_argument("--revision")
    parser.add_argument("--save_again")
    options = parser.parse_args()
    if options.installed:
        import m3dec  # noqa: F401
    else:
        sys.meta_path.insert(0, WithoutPackage())

    import numpy as np
    import torch
    from PIL import Image
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageSegmentation,
        AutoProcessor,
        pipeline,
    )

    pinned = {"revision": options.revision, "code_revision": options.revision} if options.revision else {}
    trust = {} if options.installed else {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(options.model, **trust, **pinned)
    model = AutoModelForImageSegmentation.from_pretrained(options.model, **trust, **pinned).eval()
    base = AutoModel.from_pretrained(options.model, **trust, **pinned).eval()
    processor = AutoProcessor.from_pretrained(options.model, **trust, **pinned)
    by_pillow = AutoImageProcessor.from_pretrained(options.model, backend="pil", **trust, **pinned)
    pipe = pipeline("referring-image-segmentation", model=options.model, **trust, **pinned)
    picture, texts = Image.open(options.picture), ["the leftmost thing", "the red ring"]
    inputs = processor(images=picture, text=texts)
    with torch.no_grad():
        logits = model(**inputs).logits
        features = base(**inputs).image_features
    masks = [np.asarray(answer["mask"]) for answer in pipe(picture, text=texts)]
    np.savez(options.output, logits=logits, features=features, masks=masks)
    if options.save_again:
        pipe.save_pretrained(options.save_again)
    classes = [config, model, base, processor, processor.image_processor, by_pillow, pipe]
    print(json.dumps({type(one).__name__: type(one).__module__ for one in classes}))


if __name__ == "__main__":
    main()
