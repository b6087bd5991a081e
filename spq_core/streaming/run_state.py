"""Where a run stands after each block, on disk, so that a killed run can go on and give equal bytes.

A state is a JSON file and a safetensors file that it names; the JSON file is replaced in one step,
so whatever moment a process dies at, one complete state is there.
"""

import json
import os
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from spq_core.errors import StateMismatchError
from spq_core.models.weight_files import flush_to_disk

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


class _Written(NamedTuple):
    """A tensor as it was when it was written, and where."""

    tensor: "weakref.ref[Tensor]"
    """Weak: hidden states of a block that is done must go."""
    version: int
    file: str


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The states of one run; only the newest is kept.

    A tensor that has not changed since it was written is not written again: most of what stages know stays the
    same from the first block to the last, and is gigabytes of a large model.
    """

    folder: Path
    fingerprint: str
    """Of the model, the recipe, the samples and the versions: equal ones give equal results."""
    device: str = "cpu"
    """Where tensors go that are read."""
    written: dict[str, _Written] = field(default_factory=dict)
    """By name, what the newest state has."""

    def save(self, number: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Store state `number`, counted from 1, and remove what of those before it does not need."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = f"state-{number}.safetensors"
        kept = {name: known for name in tensors if (known := self._unchanged(name, tensors[name]))}
        changed = {name: tensor for name, tensor in tensors.items() if name not in kept}
        # A new file, not another's content: a frozen predecessor may still have the old one open.
        (self.folder / file).unlink(missing_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in changed.items()}, self.folder / file
        )
        flush_to_disk(self.folder / file)
        now = {
            name: _Written(weakref.ref(part), part._version, file)  # noqa: SLF001
            for name, part in changed.items()
        }
        files = {name: known.file for name, known in (kept | now).items()}
        document = {"fingerprint": self.fingerprint, "tensors": files, "values": dict(values)}
        new = self.folder / f"{STATE_FILE}.new"
        new.write_text(json.dumps(document), encoding="utf-8")
        flush_to_disk(new)
        os.replace(new, self.folder / STATE_FILE)  # noqa: PTH105
        self.written.clear()
        self.written.update(kept | now)
        needed = {file, *files.values()}
        for other in self.folder.glob("state-*.safetensors"):
            if other.name not in needed:
                other.unlink()

    def _unchanged(self, name: str, tensor: Tensor) -> _Written | None:
        """Where a tensor is on disk as it is now; None if it is not."""
        known = self.written.get(name)
        if known is None or known.tensor() is not tensor:
            return None
        return known if known.version == tensor._version else None  # noqa: SLF001

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
        # Copies lie aligned, as a running process's own tensors do; kernels may depend on that.
        aligned: dict[str, Tensor] = {}
        files: dict[str, str] = document["tensors"]
        for file in sorted(set(files.values())):
            with safe_open(self.folder / file, "pt", device=self.device) as handle:
                aligned |= {
                    name: handle.get_tensor(name).clone() for name in files if files[name] == file
                }
        return RunState(document["values"], aligned)

    def inner(self, name: str) -> "StateFolder":
        """A folder for the states of one step of the run; it goes when this one goes."""
        return StateFolder(self.folder / name, self.fingerprint, self.device)

    def remove(self) -> None:
        """Forget all states."""
        self.written.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
