"""Parameters that keep their dtype when a model is cast."""

from collections.abc import Callable
from typing import ClassVar, Self

from torch import Tensor, nn


class ExactParts(nn.Module):
    """A layer whose scales stay as they are stored: rounding them would cost more than the codes do."""

    exact: ClassVar[tuple[str, ...]] = ()
    """Names of such parameters; one may be None."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        parts = [part for name in self.exact if (part := getattr(self, name)) is not None]
        before = [part.data for part in parts]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part, kept in zip(parts, before, strict=True):
            if part.dtype != kept.dtype:
                part.data = kept.to(part.device)
        return self


def exact_names(block: nn.Module) -> frozenset[str]:
    """Names of a block's parameters that are stored as they are."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, module in block.named_modules()
        if isinstance(module, ExactParts)
        for name in module.exact
    )
