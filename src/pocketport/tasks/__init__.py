"""Tasks: what a whole model is scored on."""

from pocketport.compress.bundle import ModelBundle
from pocketport.compress.executor import OrtExecutor
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
    """The task that was asked for, or the family's own: reading for multimodal models, agreement for the others.

    Raises:
        UsageError: no such task, or one that this model can't do.
    """
    name = request.task or ("read-text" if bundle.family == "minicpmv" else "agreement")
    if name == "read-text" and bundle.family == "minicpmv":
        return ReadText(bundle)
    if name == "ctc-recognition" and "main" in bundle.components:
        return CtcRecognition(bundle)
    if name in AGAINST_FLOAT and "main" in bundle.components:
        data = load_data(bundle, request)
        graph = bundle["main"].graph
        output = str(bundle.config.get("task_output") or graph.graph.outputs[-1].name)
        feeds = [values for _, values in data.held_out()]
        return AGAINST_FLOAT[name](OrtExecutor(graph), feeds, output, data.fingerprint)
    raise UsageError(
        f"{name!r} is not a task for a {bundle.family} model",
        where="--task",
        fix=f"choose among {', '.join(TASKS)}",
    )
