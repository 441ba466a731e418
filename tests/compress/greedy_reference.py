"""What transformers generates from the weights that a quantized checkpoint stands for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from written_formats import Written

VOCABULARY = 160  # of the models in `decoder_models`


def prompt(length: int) -> list[int]:
    """Random tokens that are not special."""
    tokens: list[int] = np.random.default_rng(5).integers(3, VOCABULARY, length).tolist()
    return tokens


def greedy(folder: Path, done: Written, tokens: Sequence[int], count: int) -> tuple[list[int], NDArray[np.float32]]:
    """The next `count` tokens, and the logits [len(tokens), V] over the prompt."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    state = model.state_dict()
    with torch.inference_mode():
        for name in done.weights:
            state[name].copy_(torch.from_numpy(done.weight(name).dequantized()))
        ids = torch.tensor([list(tokens)])
        logits = model(ids).logits[0].numpy()
        found = model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)[0, len(tokens) :]
    return found.tolist(), logits


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of that vocabulary, as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 2]
    symbols.insert(2, "</s>")
    merge = (symbols[0], symbols[1])  # openvino-tokenizers needs one, and a special token
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, "".join(merge)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[merge]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
