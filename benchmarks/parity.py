"""Every family against its original on small random checkpoints, and MiniCPM-V's slicing against transformers'.

``python benchmarks/parity.py [--out out/parity] [--only minicpm-v-2.6 ...] [--no-pixels] [--docs docs/families.md]``

Each preset of `pocketport synth` is written at a width of about 256 and at most 8 layers, opened by its family, and passed
through the parity gate. Prints both tables, writes ``<out>/parity.json``, and with ``--docs`` puts them in the document.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pocketport.commands.console import out
from pocketport.compress.families.minicpmv.config import MiniCPMVConfig
from pocketport.compress.families.minicpmv.preprocessing_reference import SIZES, Laid, PreprocessingReference
from pocketport.compress.families.registry import Family, families, family_named
from pocketport.compress.ingest import ingest
from pocketport.compress.parity import ParityFigure, check_parity
from pocketport.compress.synthesis.preset import Preset, load_preset, preset_names, scaled
from pocketport.compress.synthesis.tokenizer import synthetic_tokenizer
from pocketport.compress.synthesis.write import synthesize
from pocketport.errors import PocketportError
from pocketport.files import write_json

WIDTH, LAYERS = 256, 8
SCALE_OF_TOKENS = 0.06  # of a vocabulary that holds the special tokens


@dataclass(frozen=True)
class Row:
    """A preset's way through its gate.

    Attributes:
        preset, family, original: names.
        components: that were compared.
        worst: the least alike output.
        max_abs: the largest difference of any float output.
        comparisons: of all outputs.
        error: why there is nothing of that, if so.
    """

    preset: str
    family: str = ""
    original: str = ""
    components: Sequence[str] = ()
    worst: ParityFigure | None = None
    max_abs: float = 0.0
    comparisons: int = 0
    error: str = ""


def gate(name: str, folder: Path) -> Row:
    """Write a small checkpoint and pass it through its family's gate."""
    try:
        synthesize(name, folder, scale=min(1.0, WIDTH / width(load_preset(name))), layers=LAYERS)
        bundle = ingest(folder)
        figures = check_parity(bundle, folder).figures
    except PocketportError as error:
        return Row(name, error=str(error))
    family = family_named(bundle.family)
    return Row(
        name, bundle.family, family.original if family else "", sorted({f.component for f in figures}),
        min(figures, key=lambda f: f.sqnr_db), max(f.max_abs for f in figures), sum(f.comparisons for f in figures),
    )  # fmt: skip


def width(preset: Preset) -> int:
    """Channels of the published model, of its text part where it has several."""
    sections = [preset.config, *(v for k, v in preset.config.items() if k.endswith("_config") and isinstance(v, dict))]
    found = [int(s[key]) for s in sections for key in ("hidden_size", "d_model") if key in s]
    return max(found, default=WIDTH)


def slicing(name: str, pixels: bool) -> Iterator[Laid]:
    """The table of sizes for one version as it was published."""
    preset = load_preset(name)
    small = scaled(preset, SCALE_OF_TOKENS, None)
    tokenizer = synthetic_tokenizer(small.config["vocab_size"], small.special_tokens)
    yield from PreprocessingReference(MiniCPMVConfig.model_validate(preset.config), tokenizer).compare(
        SIZES, pixels=pixels
    )


def parity_cells(row: Row) -> list[str]:
    if row.worst is None:
        return [row.preset, row.family, row.error, "", "", "", ""]
    decibels = f"{row.worst.sqnr_db:.0f} ({row.worst.component} {row.worst.tensor})"
    return [
        row.preset, row.family, row.original, ", ".join(row.components), decibels, f"{row.max_abs:.1e}", str(row.comparisons)
    ]  # fmt: skip


def by(pair: tuple[int, int] | None) -> str:
    return "–" if pair is None else f"{pair[0]}×{pair[1]}"


def slicing_cells(size: tuple[int, int], versions: dict[str, Laid]) -> list[str]:
    """One size: what all sliced versions share, then tokens and whether everything is the reference's, by version."""
    laid = next(row for name, row in versions.items() if name != "minicpm-v-1.0")
    shared = [by(size), by(laid.overview), by(laid.grid), by(laid.slice_size), str(laid.views)]
    tokens = [str(row.tokens) for row in versions.values()]
    differing = sorted({f"{name}: {what}" for name, row in versions.items() for what in row.differing})
    return [*shared, *tokens, ", ".join(differing) or "yes"]


def family_cells(family: Family) -> list[str]:
    return [family.name, ", ".join(f"`{kind}`" for kind in family.model_types), family.original]


FAMILY_HEAD = ["family", "`model_type`", "the gate's original"]
PARITY_HEAD = ["preset", "family", "original", "components", "worst SQNR, dB", "max abs", "comparisons"]
SLICED_HEAD = ["image", "overview", "grid", "slice", "views"]


def printed(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put(document: Path, tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end -->``."""
    text = document.read_text("utf-8")
    for name, table in tables.items():
        before, opening, rest = text.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        text = f"{before}{opening}{table}{closing}{after}"
    document.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/parity"))
    parser.add_argument("--only", nargs="+", default=preset_names(), metavar="PRESET")
    parser.add_argument("--no-pixels", action="store_true", help="leave out what images become, which takes a minute")
    parser.add_argument("--docs", type=Path, help="the document whose tables are replaced")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="pocketport-parity-") as temporary:
        for name in arguments.only:
            rows.append(gate(name, Path(temporary) / name))
            out.print(*parity_cells(rows[-1])[:2], parity_cells(rows[-1])[4] or rows[-1].error)
    series = [n for n in arguments.only if load_preset(n).config["model_type"] == "minicpmv"]
    sizes: dict[tuple[int, int], dict[str, Laid]] = {size: {} for size in SIZES}
    seen: set[str] = set()  # versions that cut alike are compared to the pixel once
    for name in series:
        config = MiniCPMVConfig.model_validate(load_preset(name).config)
        cutting = f"{config.slice_mode} {config.slice_config} {config.image_size}"
        for laid in slicing(name, not arguments.no_pixels and cutting not in seen):
            sizes[laid.size][name] = laid
        seen.add(cutting)
    cells = {"parity": (PARITY_HEAD, [parity_cells(row) for row in rows])}
    if len(series) > 1:
        versions = [f"tokens {n.rpartition('-')[2]}" for n in series]
        head = [*SLICED_HEAD, *versions, "as transformers has it"]
        cells["slicing"] = (head, [slicing_cells(size, laid) for size, laid in sizes.items()])
    for title, (head, table) in cells.items():
        printed(title, head, table)
    document: dict[str, Any] = {
        "schema": "pocketport.parity-benchmark/1",
        "parity": [asdict(row) for row in rows],
        "slicing": [{"version": n, **asdict(laid)} for versions in sizes.values() for n, laid in versions.items()],
    }
    write_json(arguments.out / "parity.json", document)
    if arguments.docs:
        cells["families"] = (FAMILY_HEAD, [family_cells(family) for family in families()])
        put(arguments.docs, {name: markdown(*table) for name, table in cells.items()})
    failed = [row.preset for row in rows if row.error] + [
        n for v in sizes.values() for n, r in v.items() if r.differing
    ]
    if failed:
        raise SystemExit(f"not as the original: {', '.join(sorted(set(failed)))}")


if __name__ == "__main__":
    main()
