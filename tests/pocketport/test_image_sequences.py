"""Calibration samples of images and text: rows, weights, and that answers continue their prompts."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketport.calibration.metrics import sqnr_db
from pocketport.calibration.sources.rendered_text import RenderedText
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.chat import ImagePrompt, recorded
from pocketport.compress.families.registry import Lengths, chat_of, family_of, host_of
from pocketport.compress.ingest import path_of
from pocketport.compress.sources.open import open_source
from pocketport.data import prompt_samples
from pocketport.errors import InputError
from pocketport.request import Request
from pocketport.stages.image_sequences import ImageSequences, row_weights

ROWS = 256


def _reference(rows: int = ROWS):  # type: ignore[no-untyped-def]
    source = open_source(path_of("reference"))
    return family_of(source).load(source, "reference", Lengths(prompt=rows))


def _sequences(samples: list[tuple[Image.Image, str, str | None]], visual_weight: float = 1.0) -> ImageSequences:
    return ImageSequences(lambda: iter(samples), len(samples), ROWS, visual_weight, "test", "test")


def test_a_prompt_with_its_answer_gives_the_keys_and_values_that_decoding_token_by_token_gives() -> None:
    bundle = _reference()
    sample = next(iter(RenderedText(seed=3, fonts="train").take(1)))
    feeds = next(_sequences([(sample.image, sample.prompt, sample.answer)]).feeds(bundle, host_of(bundle)))
    weights = np.asarray(feeds.pop("row_weights"))  # type: ignore[attr-defined]
    results = OrtExecutor(bundle["prefill"].graph).run(feeds)
    factory = chat_of(bundle)
    assert factory is not None
    chat, calls = recorded(factory({c.name: OrtExecutor(c.graph) for c in bundle}, bundle.config, bundle.files))
    chat.force_tokens(sample.image, sample.prompt, chat.answer_tokens(sample.answer))
    decoded = [call.results for call in calls if call.component == "decode"]
    assert len(decoded) > 3
    for name in (n for n in results if n.startswith("present_")):
        columns = np.concatenate([step[name] for step in decoded], axis=2)
        behind = np.asarray(results[name])[:, :, -1 - len(decoded) : -1]  # the end of the turn comes last, undecoded
        assert sqnr_db(columns, behind) > 80, name
    bias = np.asarray(feeds["attention_bias"])[0]
    np.testing.assert_array_equal(weights > 0, bias[-1] == 0)


def test_samples_without_padding_answer_as_padded_ones_do() -> None:
    bundle = _reference()
    sample = next(iter(RenderedText(seed=3, fonts="train").take(1)))
    padded = _sequences([(sample.image, sample.prompt, sample.answer)])
    short = replace(padded, padded=False)
    assert short.fingerprint != padded.fingerprint
    logits = []
    for sequences in (padded, short):
        feeds = next(sequences.feeds(bundle, host_of(bundle)))
        rows = len(np.asarray(feeds.pop("row_weights")))  # type: ignore[attr-defined]
        logits.append(OrtExecutor(_reference(rows)["prefill"].graph).run(feeds)["logits"])
    assert rows % 32 == 0 and rows < ROWS
    assert sqnr_db(logits[0], logits[1]) > 80


def test_vision_tokens_count_as_told_and_padding_not_at_all() -> None:
    prompt = ImagePrompt(list(range(6)), [(1, 3), (4, 5)], [], 1)
    np.testing.assert_array_equal(row_weights(prompt, 8, 0.25), [0, 0, 1, 0.25, 0.25, 1, 0.25, 1])


@pytest.mark.parametrize(
    "positions", [None, np.array([0, 1, 1, 2]), np.array([[0, 1, 1, 2], [0, 1, 2, 2], [0, 1, 1, 3]])]
)
def test_an_answer_follows_its_prompt(positions: np.ndarray | None) -> None:
    extra = {"deepstack_embeds_0": np.arange(12, dtype=np.float32).reshape(6, 2) * [[0], [0], [1], [1], [1], [1]]}
    longer = ImagePrompt([5, 6, 7, 8], [(1, 3)], [], 1, positions, extra).followed_by([9, 9])
    assert longer.input_ids == [5, 6, 7, 8, 9, 9]
    np.testing.assert_array_equal(longer.extra["deepstack_embeds_0"][:4], extra["deepstack_embeds_0"][2:])
    np.testing.assert_array_equal(longer.extra["deepstack_embeds_0"][4:], 0)
    if positions is None:
        assert longer.positions is None
    else:
        assert longer.positions is not None
        np.testing.assert_array_equal(longer.positions[..., :4], positions)
        last = positions.max()
        np.testing.assert_array_equal(
            longer.positions[..., 4:], np.broadcast_to([last + 1, last + 2], (*positions.shape[:-1], 2))
        )


def test_an_answer_that_does_not_fit_is_named() -> None:
    bundle = _reference(224)
    image = Image.new("RGB", (448, 448), "white")
    samples = _sequences([(image, "Read the text. " * 40, "text")])
    with pytest.raises(InputError, match="--sequence-length"):
        list(samples.feeds(bundle, host_of(bundle)))


def test_the_reference_model_and_folders_of_images_give_images_and_texts_do_not(tmp_path: Path) -> None:
    bundle = _reference()
    own = prompt_samples(bundle, Request(source="reference", formats=["gptq"], calibration_samples=3))
    assert own is not None and own.count == 3
    assert all(answer for _, _, answer in islice(own.samples(), 3))
    for index in range(4):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / f"{index}.png")
    folder = prompt_samples(bundle, Request(source="reference", formats=["gptq"], data=str(tmp_path)))
    assert folder is not None and folder.count == 3  # one is held out
    assert [image.size for image, _, _ in folder.samples()] == [(32, 32)] * 3
    text = tmp_path / "text.txt"
    text.write_text("words")
    assert prompt_samples(bundle, Request(source="reference", formats=["gptq"], data=str(text))) is None
