"""Exact match and character error rate of the reference model on held-out images, in float.

``python -m pocketport.compress.reference.evaluate -n 500``
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from pocketport.calibration.sources.rendered_text import RenderedText, Sample
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.modeling import MiniCPMV
from pocketport.compress.families.minicpmv.prompt import decode_answer, encode_prompt, load_tokenizer
from pocketport.compress.families.minicpmv.slicing import pack_views, slice_image
from pocketport.compress.reference import reference_dir

EVALUATION_SEED = 20261124
"""Of the published score; no decision in training looked at it."""


@dataclass(frozen=True)
class Score:
    """Exact match (share), character error rate (edits per reference character) and the count."""

    exact_match: float
    cer: float
    count: int
    exact_match_single: float
    exact_match_sliced: float
    count_sliced: int


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def load_model(path: Path) -> MiniCPMV:
    """The checkpoint in `path` as a float32 torch model in evaluation mode."""
    model = MiniCPMV(MiniCPMVConfig.load(path))
    model.load_state_dict({k: v.float() for k, v in load_file(path / "model.safetensors").items()})
    return model.eval()


@torch.inference_mode()
def read_texts(
    model: MiniCPMV, tokenizer: Tokenizer, samples: Sequence[Sample], *, max_new_tokens: int = 32
) -> list[str]:
    """Greedy answers for a batch of `samples` of any mix of sizes, with a KV cache."""
    config = model.config
    views, prompts = [], []
    for sample in samples:
        cut, grid = slice_image(sample.image, config.slice_config)
        views += cut
        prompts.append(encode_prompt(tokenizer, sample.prompt, query_num=config.query_num, grid=grid))
    packed = pack_views(
        views,
        patch_size=config.vision_config.patch_size,
        buckets=config.vision_config.buckets_per_side,
        dim=config.hidden_size,
    )
    vision, _ = model.encode_images(
        torch.from_numpy(packed.strip),
        torch.from_numpy(packed.position_ids),
        torch.from_numpy(packed.positions),
        torch.from_numpy(packed.valid),
    )
    lengths = torch.tensor([len(p.input_ids) for p in prompts])
    count, width = len(prompts), int(lengths.max())
    ids = torch.zeros(count, width, dtype=torch.long)
    is_vision = torch.zeros(count, width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.input_ids)] = torch.tensor(prompt.input_ids)
        for start, end in prompt.spans:
            is_vision[row, start:end] = True
    hidden, cache = model.llm(model.embed(ids, vision, is_vision))
    logits = model.llm.lm_head(hidden[torch.arange(count), lengths - 1])
    known = torch.arange(width)[None] < lengths[:, None]
    stop = tokenizer.token_to_id("<|eot_id|>")
    tokens: list[list[int]] = [[] for _ in prompts]
    done = torch.zeros(count, dtype=torch.bool)
    for step in range(max_new_tokens):
        chosen = logits.argmax(-1)
        for row in range(count):
            tokens[row].append(int(chosen[row]))
        done |= chosen == stop
        if bool(done.all()):
            break
        known = torch.cat((known, torch.ones(count, 1, dtype=torch.bool)), dim=1)
        hidden, cache = model.llm(
            model.llm.model.embed_tokens(chosen)[:, None],
            positions=(lengths + step)[:, None],
            mask=known[:, None, None, :],
            past=cache,
        )
        logits = model.llm.lm_head(hidden[:, -1])
    return [decode_answer(tokenizer, t) for t in tokens]


def evaluate(
    model: MiniCPMV, tokenizer: Tokenizer, count: int, *, seed: int = EVALUATION_SEED, batch: int = 25
) -> tuple[Score, list[tuple[Sample, str]]]:
    """Score `model` on the first `count` held-out samples of `seed`."""
    source = RenderedText(seed, "held_out")
    pairs: list[tuple[Sample, str]] = []
    for start in range(0, count, batch):
        samples = list(source.take(min(batch, count - start), start))
        pairs += zip(samples, read_texts(model, tokenizer, samples), strict=True)
    limit = model.config.slice_config.scale_resolution**2
    hits = [(s.image.width * s.image.height > limit, s.answer == read) for s, read in pairs]
    sliced = [hit for is_sliced, hit in hits if is_sliced]
    single = [hit for is_sliced, hit in hits if not is_sliced]
    edits = sum(edit_distance(s.answer, read) for s, read in pairs)
    score = Score(
        exact_match=sum(hit for _, hit in hits) / len(hits),
        cer=edits / sum(len(s.answer) for s, _ in pairs),
        count=len(hits),
        exact_match_single=sum(single) / max(len(single), 1),
        exact_match_sliced=sum(sliced) / max(len(sliced), 1),
        count_sliced=len(sliced),
    )
    return score, pairs


def main() -> None:
    """Print the score of a checkpoint as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=500, help="held-out images")
    parser.add_argument("--model", type=Path, default=reference_dir(), help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--errors", type=int, default=0, help="also print this many misread images")
    options = parser.parse_args()
    start = time.monotonic()
    score, pairs = evaluate(load_model(options.model), load_tokenizer(options.model), options.n, seed=options.seed)
    print(json.dumps({**asdict(score), "seed": options.seed, "seconds": round(time.monotonic() - start, 1)}))
    misread = [(s, read) for s, read in pairs if s.answer != read]
    for sample, read in misread[: options.errors]:
        print(f"{sample.font:24s} {sample.image.size} {sample.answer!r} read as {read!r}")


if __name__ == "__main__":
    main()
