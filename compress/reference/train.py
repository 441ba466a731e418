"""Trains the reference model on rendered text: seeded, resumable, on the CPU, within a budget of time.

``python -m pocketport.compress.reference.train --minutes 100 --run DIR``; the same command resumes.

Two auxiliary losses, neither shipped, make a small model read early: CTC on every view's vision tokens in
reading order (so that the tokens line up with the text before the language model looks at them), and a
classification of every patch by the characters centred in it. Both fade out.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.modeling import MiniCPMV
from pocketport.compress.families.minicpmv.prompt import load_tokenizer
from pocketport.compress.reference import reference_dir
from pocketport.compress.reference.evaluate import evaluate
from pocketport.compress.reference.train_data import IGNORE, Batches, to_torch

CLASSES = 128
RANKS = 40


class AuxiliaryHeads(nn.Module):
    """The heads that only training has: per query (CTC, slot), per patch (two characters, slot)."""

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__()
        self.ctc = nn.Linear(config.hidden_size, CLASSES)
        self.order = nn.Linear(config.hidden_size, CLASSES)
        self.dense = nn.Linear(config.vision_config.hidden_size, 2 * CLASSES + RANKS)


def initialise(model: MiniCPMV) -> None:
    """Small normal weights, residual branches scaled down by depth."""
    depths = {"vpm": 6, "llm": 4}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name in ("resampler.query", "resampler.proj"):
            continue
        fan_in = parameter[0].numel()
        std = 0.02 if "embed" in name and "patch" not in name else fan_in**-0.5
        if name.endswith(("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")):
            std /= math.sqrt(2 * depths.get(name.split(".")[0], 1))
        nn.init.normal_(parameter, std=std)
    nn.init.normal_(model.resampler.query, std=1.0)


def split_parameters(modules: list[nn.Module]) -> tuple[list[nn.Parameter], ...]:
    """Hidden matrices (Muon), other matrices (AdamW with decay), vectors (AdamW without)."""
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif ".layers." in name or name.startswith(("resampler.kv_proj.", "resampler.proj", "resampler.attn.")):
                hidden.append(parameter)
            else:
                other.append(parameter)
    return hidden, other, vectors


def pointing(model: MiniCPMV, patches: Tensor, batch: dict[str, Any]) -> Tensor:
    """How much of each query's attention misses the patch of its character, as mean -log of the mass on it.

    `patches` [B, L, D] come from the tower.
    """
    resampler = model.resampler
    heads = resampler.attn.num_heads
    weights, biases = resampler.attn.in_proj_weight.chunk(3), resampler.attn.in_proj_bias.chunk(3)
    with torch.autocast("cpu", torch.bfloat16):
        keys = resampler.ln_kv(resampler.kv_proj(patches)) + batch["positions"]
        k = F.linear(keys, weights[1], biases[1])
        q = F.linear(resampler.ln_q(resampler.query), weights[0], biases[0])
        q, k = (t.view(*t.shape[:-1], heads, -1).transpose(-3, -2) for t in (q, k))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores.float().masked_fill(~batch["valid"][:, None, None], float("-inf"))
    cells = batch["slots"][..., 1]
    found = scores.gather(3, cells.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, -1)).squeeze(3)
    missed = math.log(heads) - torch.logsumexp(found - torch.logsumexp(scores, dim=3), dim=1)
    return missed[cells >= 0].mean()


def losses(model: MiniCPMV, heads: AuxiliaryHeads, batch: dict[str, Any], *, language: bool) -> dict[str, Tensor]:
    """All losses of one batch; the language model's only if `language`."""
    out: dict[str, Tensor] = {}
    with torch.autocast("cpu", torch.bfloat16):
        vision, patches = model.encode_images(batch["strip"], batch["position_ids"], batch["positions"], batch["valid"])
        ctc, order = heads.ctc(vision), heads.order(vision)
        if language:
            total, count = torch.zeros(()), 0
            for picked, ids, target, is_vision in batch["groups"]:
                hidden, _ = model.llm(model.embed(ids, vision[picked], is_vision))
                wanted = target != IGNORE
                logits = model.llm.lm_head(hidden[wanted])
                total = total + F.cross_entropy(logits.float(), target[wanted], reduction="sum")
                count += int(wanted.sum())
            out["lm"] = total / count
    weight = batch["weight"]
    log_probs = F.log_softmax(ctc.float(), dim=-1).transpose(0, 1)
    frames = torch.full_like(batch["ctc_lengths"], log_probs.shape[0])
    per_view = F.ctc_loss(log_probs, batch["ctc"], frames, batch["ctc_lengths"], reduction="none", zero_infinity=True)
    out["ctc"] = (per_view * weight).sum() / batch["ctc_lengths"].sum().clamp(min=1)
    per_query = F.cross_entropy(order.float().flatten(0, 1), batch["slots"][..., 0].flatten(), reduction="none")
    out["order"] = (per_query.view(order.shape[:2]) * weight[:, None]).mean()
    out["point"] = pointing(model, patches, batch)
    cells, chosen = batch["dense"], batch["valid"] & (batch["dense"][..., 0] > 0)
    chosen |= batch["valid"] & (torch.rand(chosen.shape) < 0.1)
    first, second, rank = heads.dense(patches[chosen]).float().split([CLASSES, CLASSES, RANKS], dim=-1)
    labels, scale = cells[chosen], weight[:, None].expand_as(chosen)[chosen]
    for name, logits, column in (("dense", first, 0), ("dense2", second, 1)):
        loss = F.cross_entropy(logits, labels[:, column], reduction="none")
        out[name] = (loss * scale).sum() / scale.sum()
    out["rank"] = F.cross_entropy(rank, labels[:, 2], ignore_index=IGNORE)
    return out


def weights_at(progress: float) -> dict[str, float]:
    """The losses' weights; the auxiliary ones fade out."""
    fade = min(1.0, max(0.0, (0.97 - progress) / 0.22))
    return {
        "lm": 1.0,
        "ctc": 0.05 * fade,
        "order": 1.0 * fade,
        "point": 0.3 * fade,
        "dense": 0.6 * fade,
        "dense2": 0.3 * fade,
        "rank": 0.2 * fade,
    }


def rate_at(progress: float) -> float:
    """Learning rate factor: short warm-up, a plateau, then linear to zero."""
    return min(1.0, progress / 0.008 + 0.02) * min(1.0, max(0.0, (1.0 - progress) / 0.75))


def export(model: MiniCPMV, folder: Path) -> None:
    """Write bfloat16 weights to ``model.safetensors``, atomically."""
    temporary = folder / "model.safetensors.tmp"
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")


def rounded(model: MiniCPMV) -> MiniCPMV:
    """A copy with the weights as they will be stored."""
    clone = copy.deepcopy(model)
    for parameter in clone.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return clone.eval()


class Trainer:
    """The state of one run; `save` and `resume` keep it whole, elapsed time included."""

    def __init__(self, run: Path, seed: int, batch: int, rate: float) -> None:
        torch.manual_seed(seed)
        self.run, self.seed, self.batch, self.rate = run, seed, batch, rate
        self.config = MiniCPMVConfig.load(reference_dir())
        self.model, self.heads = MiniCPMV(self.config), AuxiliaryHeads(self.config)
        initialise(self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        hidden, other, vectors = split_parameters([self.model, self.heads])
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [{"params": other, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}],
                lr=rate,
                betas=(0.9, 0.98),
            ),
        ]
        self.parameters = [*hidden, *other, *vectors]
        self.step, self.elapsed = 0, 0.0
        run.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "elapsed": self.elapsed,
        }
        torch.save(state, self.run / "checkpoint.tmp")
        (self.run / "checkpoint.tmp").replace(self.run / "checkpoint.pt")

    def resume(self) -> None:
        """Continue from the checkpoint if there is one."""
        path = self.run / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]

    def update(self, batch: dict[str, Any], progress: float) -> dict[str, float]:
        """One optimizer step."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * rate_at(progress)
            optimizer.zero_grad(set_to_none=True)
        parts = losses(self.model, self.heads, batch, language=progress > 0.03)
        weights = weights_at(progress)
        total = torch.stack([loss * weights[name] for name, loss in parts.items()]).sum()
        torch.autograd.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(0.99, 1 - 10 / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return {name: float(loss.detach()) for name, loss in parts.items()} | {"norm": float(norm)}


def set_threads() -> None:
    """Follow ``POCKETPORT_TRAIN_THREADS``, a file that holds the number of threads to use."""
    path = Path(os.environ.get("POCKETPORT_TRAIN_THREADS", ""))
    if path.is_file() and (text := path.read_text().strip()).isdigit() and int(text) != torch.get_num_threads():
        torch.set_num_threads(int(text))


def main() -> None:
    """Train for the given time and leave the weights in the reference directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=100.0, help="budget of training time")
    parser.add_argument("--run", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--out", type=Path, default=reference_dir(), help="where model.safetensors goes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--export-minutes", type=float, default=10.0)
    options = parser.parse_args()
    trainer = Trainer(options.run, options.seed, options.batch, options.rate)
    trainer.resume()
    budget = options.minutes * 60
    tokenizer = load_tokenizer(reference_dir())
    batches = Batches(options.seed, trainer.step, options.batch, trainer.elapsed / budget)
    last = time.monotonic()
    exported = logged = saved = trainer.elapsed
    sums: dict[str, float] = {}
    views = steps = 0
    for arrays in batches:
        progress = trainer.elapsed / budget
        if progress >= 1:
            break
        batches.progress.value = progress
        batch = to_torch(arrays)
        for name, value in trainer.update(batch, progress).items():
            sums[name] = sums.get(name, 0.0) + value
        views, steps = views + len(batch["strip"]), steps + 1
        now = time.monotonic()
        trainer.elapsed, last = trainer.elapsed + now - last, now
        if trainer.step % 20 == 0:
            set_threads()
            line = {name: round(value / 20, 4) for name, value in sums.items()}
            seconds = max(trainer.elapsed - logged, 1e-9)
            line |= {"views_s": round(views / seconds, 1), "samples_s": round(steps * options.batch / seconds, 1)}
            line |= {"step": trainer.step, "minutes": round(trainer.elapsed / 60, 2)}
            print(json.dumps(line), flush=True)
            sums, views, steps, logged = {}, 0, 0, trainer.elapsed
        if trainer.elapsed - saved > 180:
            saved = trainer.elapsed
            trainer.save()
        if trainer.elapsed - exported > options.export_minutes * 60:
            exported = trainer.elapsed
            export(trainer.average, options.out)
            score, pairs = evaluate(rounded(trainer.average), tokenizer, 200)
            print("evaluation", score, [(s.answer, r) for s, r in pairs if s.answer != r][:6], flush=True)
    trainer.save()
    export(trainer.average, options.out)
    print("done", evaluate(rounded(trainer.average), tokenizer, 500)[0], flush=True)


if __name__ == "__main__":
    main()
