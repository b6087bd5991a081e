"""Where a run stands after each block, on disk, so that a killed run can go on and give equal bytes.

A state is a JSON file and a safetensors file that it names; the JSON file is replaced in one step,
so whatever moment a process dies at, one complete state is there.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from spq_core.errors import StateMismatchError
from spq_core.weight_files import flush_to_disk

STATE_FILE = "state.json"


def state_folder(out: Path) -> Path:
    """Where a run that writes `out` keeps its states."""
    return out.with_name(f"{out.name}.state")


def left_behind(out: Path) -> bool:
    """Whether a killed run of `compress` into `out` left a state to go on from."""
    return state_folder(out).is_dir() and not out.exists()


class RunState(NamedTuple):
    """A point between two blocks."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The states of one run; only the newest is kept."""

    folder: Path
    fingerprint: str
    """Of the model, the recipe, the samples and the versions: equal ones give equal results."""
    device: str = "cpu"
    """Where tensors go that are read."""

    def save(self, number: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Store state `number`, counted from 1, and remove the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = f"state-{number}.safetensors"
        # A new file, not another's content: a frozen predecessor may still have the old one open.
        (self.folder / file).unlink(missing_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, self.folder / file
        )
        flush_to_disk(self.folder / file)
        document = {"fingerprint": self.fingerprint, "tensors": file, "values": dict(values)}
        new = self.folder / f"{STATE_FILE}.new"
        new.write_text(json.dumps(document), encoding="utf-8")
        flush_to_disk(new)
        os.replace(new, self.folder / STATE_FILE)  # noqa: PTH105
        for other in self.folder.glob("state-*.safetensors"):
            if other.name != file:
                other.unlink()

    def load(self) -> RunState | None:
        """The newest state; None if there is none.

        Raises:
            StateMismatchError: it belongs to another run.
        """
        path = self.folder / STATE_FILE
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["fingerprint"] != self.fingerprint:
            raise StateMismatchError(
                f"{self.folder.name} holds the state of a run with another model, recipe, calibration "
                "or version; finish that one, or start anew without --resume"
            )
        found = load_file(self.folder / document["tensors"], self.device)
        # Copies lie aligned, as a running process's own tensors do; kernels may depend on that.
        aligned = {name: tensor.clone() for name, tensor in found.items()}
        return RunState(document["values"], aligned)

    def inner(self, name: str) -> "StateFolder":
        """A folder for the states of one step of the run; it goes when this one goes."""
        return StateFolder(self.folder / name, self.fingerprint, self.device)

    def remove(self) -> None:
        """Forget all states."""
        shutil.rmtree(self.folder, ignore_errors=True)
