"""Blocks between two passes: changed ones wait on disk, in the dtype they have."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spq_core.artifact.tensors import distinct_tensors, tie
from spq_core.formats.conversion import to_stored, to_working
from spq_core.formats.layer import Layout
from spq_core.formats.layouts import changed_layouts, install, parse_layouts
from spq_core.models.blocks import fill
from spq_core.models.experts import cut_experts, modules_of_experts


@dataclass(frozen=True, slots=True)
class BlockCache:
    """A scratch folder with one file per changed block."""

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    layouts: dict[str, dict[str, Layout]] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)

    def keep(self, number: int, path: str, block: nn.Module, original: nn.Module) -> None:
        """Store the block's state after pass `number`; it is of no use for computing any more.

        An earlier pass's file stays until the run ends: a resumed run may have to start from it.
        """
        to_stored(block)
        changed = changed_layouts("", block, original)
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = distinct_tensors(block)
        contiguous = {name: tensor.contiguous() for name, tensor in stored.tensors.items()}
        self.files[path] = f"{number}-{path or 'rest'}.safetensors"
        (self.folder / self.files[path]).unlink(missing_ok=True)
        save_file(contiguous, self.folder / self.files[path])
        self.layouts[path], self.aliases[path] = changed, stored.aliases

    def holds(self, path: str) -> bool:
        """Whether the block was kept."""
        return path in self.layouts

    def restore(self, path: str, empty: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Fill an empty block with the state it was kept with."""
        tensors = load_file(self.folder / self.files[path])
        for name, experts in list(modules_of_experts(empty)):
            numbers = {
                key.removeprefix(f"{name}.").partition(".")[0]
                for key in tensors
                if key.startswith(f"{name}.")
            }
            if len(numbers) < experts.num_experts:
                cut_experts(empty, name, torch.arange(len(numbers)))
        install(empty, self.layouts[path], dtype)
        aliases = self.aliases[path]
        fill(empty, tensors | {alias: tensors[kept] for alias, kept in aliases.items()})
        tie(empty, aliases)
        to_working(empty)
        return empty

    def state(self) -> dict[str, Any]:
        """What is kept where, as JSON values."""
        layouts = {
            path: {name: layout.model_dump() for name, layout in changed.items()}
            for path, changed in self.layouts.items()
        }
        return {"files": self.files, "layouts": layouts, "aliases": self.aliases}

    def recall(self, state: dict[str, Any]) -> None:
        """Find the blocks that a killed run kept."""
        self.files.update(state["files"])
        self.aliases.update(state["aliases"])
        self.layouts.update({p: parse_layouts(found) for p, found in state["layouts"].items()})
