"""Parameters and multiply-adds of the paper's two models and of the shipped one, image half and text half apart.

    python examples/model_size.py

The image half runs once per image, the text half (words, decoder, mask decoder) once per expression. Norms, activations
and the recurrent layer are not counted.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from m3dec import M3DecConfig, M3DecForImageSegmentation
from m3dec.examples.training.recipe import RECIPES, read_recipe
from m3dec.hub import PHOTOS_CHECKPOINT, SCENES_CHECKPOINT


def main():
    swin = M3DecConfig(text_config=BertConfig(), **read_recipe(RECIPES / "refcoco_swin_bert.yaml")["model"])
    print("| model | input | parameters, M: all | image half | text half | multiply-adds, G: image half | text half |")
    print("|---|---|---|---|---|---|---|")
    print(row("Darknet-53 + GloVe", M3DecConfig(vocab_size=10000)))
    print(row("Swin-B + BERT", swin))
    print(row("shipped, photographs", M3DecConfig.from_pretrained(PHOTOS_CHECKPOINT)))
    print(row("shipped, drawn scenes", M3DecConfig.from_pretrained(SCENES_CHECKPOINT)))


def row(name: str, config: M3DecConfig) -> str:
    """One line of the table, for one image and one expression of `max_words` words."""
    model = M3DecForImageSegmentation(config).eval()
    pixel_values = torch.zeros(1, 3, config.image_size, config.image_size)
    input_ids = torch.zeros(1, config.max_words, dtype=torch.int64)
    model.set_attn_implementation("eager")  # plain products, which the counter sees
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = model.get_image_features(pixel_values)
        image = counter.get_total_flops() / 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image_features=features, input_ids=input_ids)
        text = counter.get_total_flops() / 2
    image_parameters = parameters(model.model.vision_encoder) + parameters(model.model.encoder_layers)
    everything = parameters(model)
    millions = [count / 1e6 for count in (everything, image_parameters, everything - image_parameters)]
    billions = [count / 1e9 for count in (image, text)]
    return f"| {name} | {config.image_size} | " + " | ".join(f"{figure:.2f}" for figure in millions + billions) + " |"


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main()
