"""What each hostile model comes to: its error, the seconds, and how far the peak of memory rose.

``python benchmarks/hostile_checkpoints.py [--limit-mb 1024]``

The cases are those of tests/compress/hostile_files.py; all are opened in one process whose memory is limited.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from pocketport.commands.console import out, table
from pocketport.profiles.units import format_quantity

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "compress"))


def main() -> None:
    """Print the table; exit 1 when a case is opened, or ends in an error that is not typed."""
    from hostile_files import HOSTILE, outcomes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-mb", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pocketport-hostile-") as folder:
        found = outcomes(Path(folder), HOSTILE, options.limit_mb << 20)
        shown = table("hostile models", "case", "error", "says", "seconds", "memory", right=(3, 4))
        for case in HOSTILE:
            one = found[case]
            words = one.message.replace(folder, "…").partition(" (fix:")[0]
            shown.add_row(case, one.kind, words, f"{one.seconds:.2f}", format_quantity(max(one.bytes, 0), "bytes"))
    out.print(shown)
    bad = [case for case in HOSTILE if not found[case].kind or found[case].kind.startswith("untyped")]
    cases = [found[case] for case in HOSTILE]
    out.print(
        f"{len(cases)} cases, {len(bad)} without a typed error{': ' + ', '.join(bad) if bad else ''}; "
        f"at most {max(c.seconds for c in cases):.1f} s and {format_quantity(max(c.bytes for c in cases), 'bytes')}"
    )
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
