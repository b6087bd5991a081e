"""Which tasks' questions are on the Hub, and where. Free of everything that reads them."""

from typing import NamedTuple

from spq_core.data.tasks import FILES


class HubTask(NamedTuple):
    """Where a task's questions are."""

    repo: str
    configuration: str
    questions: str
    """Split."""
    examples: str | None
    """Split of the examples that are shown before questions."""


HUB_TASKS = {
    "truthfulqa": HubTask("truthfulqa/truthful_qa", "multiple_choice", "validation", None),
    "gsm8k": HubTask("openai/gsm8k", "main", "test", "train"),
    "arc_easy": HubTask("allenai/ai2_arc", "ARC-Easy", "test", "train"),
    "arc_challenge": HubTask("allenai/ai2_arc", "ARC-Challenge", "test", "train"),
    "hellaswag": HubTask("Rowan/hellaswag", "default", "validation", "train"),
    "piqa": HubTask("baber/piqa", "default", "validation", "train"),
    "winogrande": HubTask("allenai/winogrande", "winogrande_xl", "validation", "train"),
    "openbookqa": HubTask("allenai/openbookqa", "main", "test", "train"),
    "mmlu": HubTask("cais/mmlu", "all", "test", "dev"),
}
"""By the name of the local file."""


def on_hub() -> list[str]:
    """Names of tasks whose questions can be fetched."""
    others = set(HUB_TASKS) - set(FILES.values())
    return sorted(others | {name for name, stem in FILES.items() if stem in HUB_TASKS})


def is_on_hub(name: str) -> bool:
    """Whether a task's questions can be fetched."""
    return FILES.get(name, name) in HUB_TASKS
