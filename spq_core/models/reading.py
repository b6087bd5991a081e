"""How a repository or a folder is read as a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from spq_core.errors import UnsupportedModelError

GGUF = ".gguf"
SUBFOLDER = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*){0,3}$"
SUBFOLDER_WORDS = (
    "must be a folder within the repository or folder, like onnx/fp16, without '/' at its ends"
)
FILE = r"^[A-Za-z0-9][\w.\-+]{0,200}\.gguf$"
FILE_WORDS = "must be the name of a .gguf file; the folder that it lies in is the subfolder"


@dataclass(frozen=True, slots=True)
class Reading:
    """What of a repository or folder is the model, and what may be done to its weights to have them."""

    subfolder: str = ""
    """The folder within it that holds config.json; empty for itself."""
    file: str | None = None
    """A GGUF file that is the model, instead of safetensors."""
    allow_requantize: bool = False
    """Whether weights that are quantized already may be widened and compressed again."""

    @classmethod
    def of_request(cls, model: Mapping[str, Any]) -> "Reading":
        """What a request says of its model; earlier ones say nothing."""
        return cls(
            model.get("subfolder") or "", model.get("file"), bool(model.get("allow_requantize"))
        )

    def request(self) -> dict[str, Any]:
        """What a request says of it: only what is not usual."""
        return {key: value for key, value in asdict(self).items() if value}

    def inside(self, name: str) -> str:
        """The name of a file of the model within the repository."""
        return f"{self.subfolder}/{name}" if self.subfolder else name


AS_IT_IS = Reading()


def require_headers(reading: Reading) -> None:
    """Refuse what has no headers from which a model's shapes are known.

    Raises:
        UnsupportedModelError: it is a GGUF file.
    """
    if reading.file is not None:
        raise UnsupportedModelError(
            f"{reading.file}: a GGUF file tells its shapes only when it is read whole: there is no estimate before it is compressed"
        )
