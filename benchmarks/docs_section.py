"""Tables in the documentation that benchmarks write: between two comments, which stay."""

from pathlib import Path

from pocketport.files import write_text


def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between ``<!-- name -->`` and ``<!-- /name -->``."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    head, _, rest = path.read_text(encoding="utf-8").partition(begin)
    write_text(path, f"{head}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}")
