"""Makes the small checkpoints of the tests of ``compress`` importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "compress"))
