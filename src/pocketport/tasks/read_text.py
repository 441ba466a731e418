"""Reading text in images: exact match and character error rate of a whole multimodal model."""

from collections.abc import Callable, Mapping, Sequence

from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import Executor
from pocketport.compress.families.chat import ChatFactory
from pocketport.tasks.base import Answer

HELD_OUT_SEED = 60_000
SIZE = 2000


class ReadText:
    """Held-out rendered text: fonts and strings that training never saw.

    Args:
        bundle: the model's.
        chat: of its family.
    """

    name = "read-text"
    metric = "exact_match"

    def __init__(self, bundle: ModelBundle, chat: ChatFactory) -> None:
        self._bundle = bundle
        self._chat = chat
        self._samples = RenderedText(seed=HELD_OUT_SEED, fonts="held_out")
        self.fingerprint = f"read-text/{HELD_OUT_SEED}"

    def __len__(self) -> int:
        return SIZE

    def evaluate(
        self, executors: Mapping[str, Executor], count: int, progress: Callable[[int], None] | None = None
    ) -> Sequence[Answer]:
        """Greedy reading of the first `count` images."""
        chat = self._chat(executors, self._bundle.config, self._bundle.files)
        answers = []
        for index in range(min(count, SIZE)):
            sample = self._samples[index]
            read = chat.read(sample.image, sample.prompt)
            text = read.text.strip()
            figures = {f"{phase}_ms": 1e3 * seconds for phase, seconds in read.seconds.items()}
            figures |= {"views": float(read.views), "tokens": float(len(read.token_ids))}
            answers.append(Answer(index, float(text == sample.answer.strip()), sample.answer, text, figures))
            if progress:
                progress(index + 1)
        return answers
