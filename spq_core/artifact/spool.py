"""Blocks between two passes: changed ones wait on disk, in the dtype they have."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spq_core.artifact.tensors import distinct_tensors, tie
from spq_core.artifact.write import changed_layouts
from spq_core.layers.layout import Layout, install
from spq_core.modeling.blocks import fill


@dataclass(frozen=True, slots=True)
class Spool:
    """A scratch folder with one file per changed block."""

    folder: Path
    layouts: dict[str, dict[str, Layout]] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)

    def keep(self, path: str, block: nn.Module, original: nn.Module) -> None:
        """Store the block's state if it differs from the architecture's."""
        changed = changed_layouts("", block, original)
        if not changed:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = distinct_tensors(block)
        contiguous = {name: tensor.contiguous() for name, tensor in stored.tensors.items()}
        save_file(contiguous, self._file(path))
        self.layouts[path], self.aliases[path] = changed, stored.aliases

    def holds(self, path: str) -> bool:
        """Whether the block was kept."""
        return path in self.layouts

    def restore(self, path: str, empty: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Fill an empty block with the state it was kept with."""
        install(empty, self.layouts[path], dtype)
        tensors = load_file(self._file(path))
        aliases = self.aliases[path]
        fill(empty, tensors | {alias: tensors[kept] for alias, kept in aliases.items()})
        tie(empty, aliases)
        return empty

    def _file(self, path: str) -> Path:
        return self.folder / f"{path or 'rest'}.safetensors"
