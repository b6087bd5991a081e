"""Base of what answers are made of."""

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """An answer, or a part of one; the OpenAPI document has the docstrings of its fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)
