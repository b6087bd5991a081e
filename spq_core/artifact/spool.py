"""Blocks between two passes: changed ones wait on disk, in the dtype they have."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spq_core.artifact.write import changed_layouts
from spq_core.layers.layout import Layout, install
from spq_core.modeling.blocks import fill


@dataclass(frozen=True, slots=True)
class Spool:
    """A scratch folder with one file per changed block."""

    folder: Path
    layouts: dict[str, dict[str, Layout]] = field(default_factory=dict)

    def keep(self, path: str, block: nn.Module, original: nn.Module) -> None:
        """Store the block's state if it differs from the architecture's."""
        changed = changed_layouts("", block, original)
        if not changed:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: t.contiguous() for name, t in block.state_dict().items()}, self._file(path)
        )
        self.layouts[path] = changed

    def restore(self, path: str, block: nn.Module, dtype: torch.dtype) -> None:
        """Give `block` the state it was kept with, if it was."""
        if path in self.layouts:
            install(block, self.layouts[path], dtype)
            fill(block, load_file(self._file(path)))

    def _file(self, path: str) -> Path:
        return self.folder / f"{path or 'rest'}.safetensors"
