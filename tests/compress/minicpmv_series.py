"""Small random checkpoints of MiniCPM-V 1.0 to 4.5 in the published layout, and how the originals answer."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.original import OriginalVision
from pocketport.compress.families.minicpmv.parity import original_language
from pocketport.compress.families.minicpmv.prompt import encode_prompt, load_tokenizer
from pocketport.compress.families.minicpmv.versions import version_of
from pocketport.compress.families.minicpmv.views import views_of
from pocketport.compress.sources.open import open_source
from pocketport.compress.synthesis.preset import load_preset, scaled
from pocketport.compress.synthesis.write import write_preset

SERIES = {
    "1.0": "minicpm-v-1.0", "2.0": "minicpm-v-2.0", "2.5": "minicpm-llama3-v-2.5", "2.6": "minicpm-v-2.6",
    "4.0": "minicpm-v-4.0", "4.5": "minicpm-v-4.5",
}  # fmt: skip
SIDE = 112  # pixels; a quarter of the published side of a slice
QUERIES = 16


def write_series(root: Path) -> dict[str, Path]:
    """By version, its checkpoint."""
    for version, name in SERIES.items():
        preset = scaled(load_preset(name), 0.06, None)
        config, files = dict(preset.config), dict(preset.files)
        config |= {
            "image_size": SIDE,
            "query_num": QUERIES,
            "vision_config": {**config["vision_config"], "image_size": 336},
        }
        if "scale_resolution" in config:
            config["scale_resolution"] = SIDE
        if "slice_config" in config:
            config["slice_config"] = {**config["slice_config"], "scale_resolution": SIDE}
        files["generation_config.json"] = {**files["generation_config.json"], "max_new_tokens": 6}
        write_preset(replace(preset, config=config, files=files), root / version)
    return {version: root / version for version in SERIES}


def original_answer(folder: Path, image: Image.Image, question: str, limit: int) -> tuple[list[int], int]:
    """Greedy decoding by the original without padding or cache: its tokens, and the number of views."""
    source = open_source(folder)
    config = MiniCPMVConfig.of(source)
    vision, language, tokenizer = OriginalVision.of(source), original_language(source), load_tokenizer(folder)
    views, grid = views_of(image, config)
    prompt = encode_prompt(
        tokenizer, question, query_num=config.query_num, grid=grid, template=version_of(config).template,
        image_id=0 if config.use_image_id else None,
    )  # fmt: skip
    stops = {tokenizer.token_to_id(stop) for stop in version_of(config).template.stops}
    seen = [torch.from_numpy(vision.encode(view)[1]) for view in views]
    tokens: list[int] = []
    while len(tokens) < limit and not stops & set(tokens[-1:]):
        embeds = language.embed([*prompt.input_ids, *tokens]).clone()
        for (first, last), view in zip(prompt.spans, seen, strict=True):
            embeds[first:last] = view
        tokens.append(int(language.compute(embeds).logits.argmax()))
    return tokens, len(views)
