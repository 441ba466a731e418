"""A language model's predictions on samples: the float model's, and what becomes of them with other weights."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from pocketport.compress.blockwise.activations import Activations
from pocketport.compress.blockwise.samples import STREAM
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Arrays
from pocketport.compress.families.registry import Lengths, host_of
from pocketport.compress.mixed_precision.next_token import Expected, Head, Quality, quality, scored
from pocketport.compress.mixed_precision.stream import Stream
from pocketport.compress.planning.weights import CALIBRATED_COMPONENT
from pocketport.compress.torch_device import best_device
from pocketport.stages.context import Context
from pocketport.stages.image_sequences import Answers
from pocketport.stages.sequences import Sequences
from pocketport.stages.weights import memory_limit

ACTIVATION_SHARE = 0.3  # of the memory limit, for each stream of samples


class Predictions:
    """What goes into the language model is made once for each set of samples, and so are the float model's predictions.

    Args:
        context: what memory is short for lies in its folder.
        bundle: the model.
        load: makes it in other shapes.
    """

    def __init__(self, context: Context, bundle: ModelBundle, load: Callable[[Lengths], ModelBundle]) -> None:
        self.head = Head(bundle[CALIBRATED_COMPONENT].graph, best_device())
        self._context, self._bundle, self._load = context, bundle, load
        self._expected: dict[str, list[Expected]] = {}
        self._streams: dict[str, Stream] = {}
        self._graphs = {int(bundle.config["prompt"]): bundle[CALIBRATED_COMPONENT].graph}

    def quality(self, weights: Mapping[str, Tensor], samples: Sequences | Answers) -> Quality:
        """What the model measures on samples with other weights in the place of some."""
        if samples.fingerprint not in self._expected:
            self._expected[samples.fingerprint] = [self.head.expected(rows) for rows in self._hidden(samples, {})]
        tokens = samples.tokens if isinstance(samples, Sequences) else None
        return quality(self.head, self._expected[samples.fingerprint], self._hidden(samples, weights), tokens)

    def stream(self, samples: Sequences | Answers, activations: Activations) -> Stream:
        """Samples on their way to the head's hidden states."""
        feeds = samples.feeds(self._bundle, host_of(self._bundle))
        return Stream(self._graph, feeds, [self.head.hidden], activations, best_device())

    def activations(self, path: Path) -> Activations:
        """Of one stream; `path` takes those that memory is short for."""
        return Activations(path, int(ACTIVATION_SHARE * memory_limit(self._context.request)))

    def _hidden(self, samples: Sequences | Answers, replaced: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Hidden states [n, H] of every sample, in the rows that are scored."""
        stream = self._measuring(samples)
        stream.forward(replaced)
        places = scored(stream.counting, samples.tokens if isinstance(samples, Sequences) else None)
        for sample, rows in enumerate(places):
            yield stream.activations.get(self.head.hidden, sample, stream.device)[rows]

    def _measuring(self, samples: Sequences | Answers) -> Stream:
        if samples.fingerprint not in self._streams:
            path = self._context.out / f".measured-{len(self._streams)}"
            self._streams[samples.fingerprint] = self.stream(samples, self.activations(path))
        return self._streams[samples.fingerprint]

    def _graph(self, feeds: Arrays) -> ir.Model:
        """The graph in the shapes of a sample."""
        rows = len(feeds[STREAM])
        if rows not in self._graphs:
            self._graphs[rows] = self._load(Lengths(prompt=rows))[CALIBRATED_COMPONENT].graph
        return self._graphs[rows]
