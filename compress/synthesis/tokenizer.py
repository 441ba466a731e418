"""A byte-level tokenizer of any vocabulary size, with a family's special tokens at their ids."""

from collections.abc import Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FILLER = "<|unused_{}|>"


def synthetic_tokenizer(size: int, special: Mapping[str, int]) -> Tokenizer:
    """Every byte is a token; ids that neither bytes nor `special` take are never produced.

    Args:
        size: of the vocabulary, at least 256 and the special tokens.
        special: token → id.
    """
    taken = set(special.values())
    free = iter(index for index in range(size) if index not in taken)
    vocabulary = {symbol: next(free) for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())}
    vocabulary |= {FILLER.format(index): index for index in free}
    vocabulary |= special
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ordered = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ordered])
    return tokenizer
