"""Documents that people write: frozen values, validated where they enter, unknown keys refused."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Document(BaseModel):
    """Base of every part of a recipe or a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    earlier_names: ClassVar[Mapping[str, str]] = {}
    """Names that keys had before, and the names they have now; documents with either are read."""

    @model_validator(mode="before")
    @classmethod
    def _by_present_names(cls, document: Any) -> Any:
        if not isinstance(document, Mapping):
            return document
        renamed = dict(document)
        for before, now in cls.earlier_names.items():
            if before in renamed:
                if now in renamed:
                    raise ValueError(f"{before} is the earlier name of {now}; give one of them")
                renamed[now] = renamed.pop(before)
        return renamed
