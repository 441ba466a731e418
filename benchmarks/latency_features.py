"""Features of the constructions in ``latency_models``, for fitting and scoring latency predictors without them.

    python benchmarks/latency_features.py [MODEL ...]

Writes ``benchmarks/data/latency_features.json.gz``; models that are there are not made again. Needs torchvision, timm and the extra ``llm``;
models are built on the meta device, so nothing is downloaded and no weight allocated.
"""

import argparse
import gzip
import json
import warnings

import torch
from latency_data import FEATURES, load_features
from latency_models import CONSTRUCTIONS
from latency_trace import traced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(CONSTRUCTIONS), help="default: all")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    known = {name: features.to_json() for name, features in load_features().items()} if FEATURES.exists() else {}
    for name in arguments.models:
        if name in known:
            continue
        construction = CONSTRUCTIONS[name]
        with torch.device("meta"):
            model = construction.build().eval()
            features = traced(model, construction.inputs)
        known[name] = features.to_json()
        print(f"{name:35} {len(features.ops):5} ops {features.macs / 1e9:9.3f} GMACs", flush=True)
    text = json.dumps(dict(sorted(known.items())), separators=(",", ":"))
    FEATURES.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
