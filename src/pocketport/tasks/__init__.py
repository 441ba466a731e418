"""Tasks: what a whole model is scored on."""

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executors.ort_executor import OrtExecutor
from pocketport.compress.families.registry import chat_of
from pocketport.data import load_data
from pocketport.errors import UsageError
from pocketport.request import Request
from pocketport.tasks.agreement import Agreement
from pocketport.tasks.base import Task
from pocketport.tasks.ctc_recognition import CtcRecognition
from pocketport.tasks.read_text import ReadText
from pocketport.tasks.segmentation import Segmentation

AGAINST_FLOAT = {task.name: task for task in (Agreement, Segmentation)}
TASKS = ("read-text", "ctc-recognition", *AGAINST_FLOAT)


def choose_task(bundle: ModelBundle, request: Request) -> Task:
    """The task that was asked for, or the family's own: reading for models that answer about images, agreement for the others.

    Raises:
        UsageError: no such task, or one that this model can't do.
    """
    chat = chat_of(bundle)
    name = request.task or ("agreement" if chat is None else "read-text")
    if name == "read-text" and chat is not None:
        return ReadText(bundle, chat)
    if name == "ctc-recognition" and "main" in bundle.components:
        return CtcRecognition(bundle)
    if name in AGAINST_FLOAT and chat is None:
        data = load_data(bundle, request)
        named = bundle.config.get("task_output")
        outputs = {c.name: str(named or c.graph.graph.outputs[-1].name) for c in bundle}
        executors = {c.name: OrtExecutor(c.graph) for c in bundle}
        return AGAINST_FLOAT[name](executors, list(data.held_out()), outputs, data.fingerprint)
    raise UsageError(
        f"{name!r} is not a task for a {bundle.family} model",
        where="--task",
        fix=f"choose among {', '.join(TASKS)}",
    )
