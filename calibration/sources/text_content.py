"""What rendered text says: words, numbers, prices, dates, codes and short lines of them, seeded.

Random codes leave out the characters whose shapes some typefaces share (``I l 1 O 0 o``); words and numbers
use every letter and digit, since there the context decides.
"""

from collections.abc import Callable

import numpy as np

from pocketport.calibration.sources.words import WORDS

Rng = np.random.Generator
CODE_UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
CODE_LOWER = "abcdefghijkmnpqrstuvwxyz23456789"
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
UNITS = ["kg", "km", "cm", "ml", "px", "ms", "GB", "MB", "Hz", "dB"]
ONSETS = "b c d f g h j k l m n p r s t v w y z br ch cl cr dr fl gr ph pl pr qu sh sl sp st tr th wh".split()  # noqa: SIM905
VOWELS = "a e i o u a e i o u ai ea ee io oo ou".split()  # noqa: SIM905
CODAS = ["", "", "", *"b d g k l m n p r s t x ck ll nd ng nt rt sh st th mp".split()]  # noqa: SIM905


def _pick(rng: Rng, options: "list[str] | str") -> str:
    return str(options[int(rng.integers(len(options)))])


def _digits(rng: Rng, low: int, high: int) -> str:
    return "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(low, high + 1))))


def word(rng: Rng) -> str:
    """A word, most often English, else pronounceable, in lower case, capitalised or in capitals."""
    if rng.random() < 0.55:
        text = _pick(rng, WORDS)
    else:
        text = "".join(
            _pick(rng, ONSETS) + _pick(rng, VOWELS) + _pick(rng, CODAS) for _ in range(int(rng.integers(1, 4)))
        )
    case = rng.random()
    return text if case < 0.5 else text.capitalize() if case < 0.78 else text.upper()


def number(rng: Rng) -> str:
    """An integer, a decimal, a percentage or a quantity."""
    kind = int(rng.integers(5))
    if kind == 0:
        return _digits(rng, 1, 8)
    if kind == 1:
        return f"{_digits(rng, 1, 4)}.{_digits(rng, 1, 3)}"
    if kind == 2:
        return f"{int(rng.integers(0, 101))}%"
    if kind == 3:
        return f"{int(rng.integers(1, 1000))} {_pick(rng, UNITS)}"
    return f"{int(rng.integers(1, 10 ** int(rng.integers(3, 8)))):,}"


def price(rng: Rng) -> str:
    """A price in dollars."""
    return f"${int(rng.integers(0, 10 ** int(rng.integers(1, 4))))}.{int(rng.integers(0, 100)):02d}"


def moment(rng: Rng) -> str:
    """A date or a time of day."""
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(1950, 2050))
    kind = int(rng.integers(4))
    if kind == 0:
        return f"{year}-{month:02d}-{day:02d}"
    if kind == 1:
        return f"{day:02d}/{month:02d}/{year}"
    if kind == 2:
        return f"{day} {_pick(rng, MONTHS)} {year}"
    return f"{int(rng.integers(24)):02d}:{int(rng.integers(60)):02d}"


def code(rng: Rng) -> str:
    """A random string without look-alikes, sometimes in groups."""
    alphabet = CODE_UPPER if rng.random() < 0.65 else CODE_LOWER
    groups = 1 if rng.random() < 0.6 else 2
    length = int(rng.integers(2, 9 if groups == 1 else 6))
    parts = ["".join(_pick(rng, alphabet) for _ in range(length)) for _ in range(groups)]
    return _pick(rng, "-/#:").join(parts)


def _piece(rng: Rng) -> str:
    makers: list[tuple[float, Callable[[Rng], str]]] = [
        (0.58, word),
        (0.72, number),
        (0.78, price),
        (0.86, moment),
        (1.0, code),
    ]
    draw = rng.random()
    text = next(make for limit, make in makers if draw < limit)(rng)
    mark = rng.random()
    if mark < 0.06:
        return text + _pick(rng, "!?.,:")
    if mark < 0.08:
        return f"({text})"
    return text


def random_line(rng: Rng, max_chars: int) -> str:
    """One to three whole pieces that fit in `max_chars`."""
    wanted = 1 + int(rng.choice(3, p=[0.55, 0.35, 0.1]))
    line = ""
    for _ in range(12):
        longer = f"{line} {_piece(rng)}".strip()
        if len(longer) <= max_chars:
            line, wanted = longer, wanted - 1
        if not wanted:
            break
    return line or _digits(rng, 1, min(max_chars, 4))


def random_lines(rng: Rng, max_chars: int, stacked: float) -> list[str]:
    """One line or, with probability `stacked`, two or three, of at most `max_chars`, newlines included."""
    count = 1 + int(rng.choice(3, p=[1 - stacked, 0.65 * stacked, 0.35 * stacked]))
    lines: list[str] = []
    left = max_chars
    for row in range(count):
        budget = min(left, 16 if count == 1 else max(left // (count - row), 1))
        if budget < 1:
            break
        line = random_line(rng, budget)
        lines.append(line)
        left -= len(line) + 1
    return lines
