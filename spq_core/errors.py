"""Errors that several rooms raise; those of one room are defined there.

SpqError
├── RecipeError              the request itself is impossible
├── WeightsMismatchError     weight files and config.json are not of one model
├── TargetUnreachedError     no attempt came as close to the source as asked
├── UnsupportedModelError    no family adapter knows this architecture
├── CodedError               base of errors whose code is chosen where they are raised
│   └── UnsafeModelError     the repository holds what we refuse to open
├── DatasetError             a named text cannot be had
├── CalibrationLeakError     calibration text is also evaluation text
├── EvaluationError          the model cannot be measured with these settings
├── NumericalError           a tensor that must be finite is not
├── OutputExistsError        the folder to write is there already
├── OutputLockedError        another run is writing it
├── DiskSpaceError           it would not fit there
├── MemoryNeededError        nor into memory
└── ArtifactError            a compressed model folder is not what it claims to be
    ├── TokenizerError       its tokenizer cannot be built, or does not fit its embedding
    ├── StateMismatchError   what a run left belongs to another one
    └── DigestMismatchError  stored bytes are not the bytes the manifest lists

Most are deterministic: the same input fails again; a locked output and a full disk are the machine's. Each carries a
stable `code` that the service hands to its clients.
"""


class SpqError(Exception):
    """Base class; catch this to catch everything the library raises on purpose."""

    code = "compression_failed"


class RecipeError(SpqError):
    """The recipe is malformed or asks for something impossible."""

    code = "invalid_recipe"


class TargetUnreachedError(SpqError):
    """No attempt came as close to the source as the recipe's target asks."""

    code = "target_unreachable"

    def __init__(self, wanted: float, reached: float) -> None:
        super().__init__(wanted, reached)
        self.wanted, self.reached = wanted, reached

    def __str__(self) -> str:
        return (
            f"target.max_kl {self.wanted:g} was not reached, the closest attempt came to {self.reached:.3g}; "
            "allow at least that, or remove fewer weights"
        )


class UnsupportedModelError(SpqError):
    """No family adapter knows this architecture."""

    code = "unsupported_architecture"


class WeightsMismatchError(SpqError):
    """Weight files lack what config.json describes, or hold what it has no place for."""

    code = "weights_mismatch"


class CodedError(SpqError):
    """An error whose code is chosen where it is raised."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class UnsafeModelError(CodedError):
    """The model folder holds something we refuse to open."""


class DatasetError(SpqError):
    """A named text cannot be had, or is too short for what was asked of it."""

    code = "dataset_unavailable"


class EvaluationError(SpqError):
    """The model cannot be measured with these settings."""

    code = "invalid_evaluation"


class CalibrationLeakError(SpqError):
    """Calibration text is also evaluation text."""

    code = "calibration_leak"

    def __init__(self, shared_lines: int, example: str) -> None:
        super().__init__(shared_lines, example)
        self.shared_lines = shared_lines
        self.example = example

    def __str__(self) -> str:
        return (
            f"{self.shared_lines} calibration lines are also evaluation lines, for example "
            f"{self.example!r}; use another split, or set calibration.allow_evaluation_text "
            "to repeat a published protocol that does so"
        )


class NumericalError(SpqError):
    """A tensor that must be finite is not."""

    code = "non_finite_tensor"

    def __init__(self, layer: str, tensor: str) -> None:
        super().__init__(layer, tensor)  # positional, so that the error survives pickling
        self.layer = layer
        self.tensor = tensor

    def __str__(self) -> str:
        return f"layer {self.layer!r}: {self.tensor} has non-finite values"


class OutputExistsError(SpqError):
    """The folder to write is there already, with something in it."""

    code = "output_exists"

    def __init__(self, folder: str, remedy: str = "name another folder") -> None:
        super().__init__(folder, remedy)
        self.folder, self.remedy = folder, remedy

    def __str__(self) -> str:
        return f"{self.folder} exists and is not empty; {self.remedy}"


class OutputLockedError(SpqError):
    """Another run is writing there."""

    code = "output_locked"

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return f"another run is writing {self.folder}; wait for it, or name another folder"


class DiskSpaceError(SpqError):
    """A run would not fit on its disk."""

    code = "insufficient_disk"

    def __init__(self, folder: str, needed: int, free: int) -> None:
        super().__init__(folder, needed, free)
        self.folder, self.needed, self.free = folder, needed, free

    def __str__(self) -> str:
        return (
            f"this run writes about {self.needed / 1e9:.1f} GB, and {self.folder} has {self.free / 1e9:.1f} GB "
            "free; free some, or name a folder on a larger disk"
        )


class MemoryNeededError(SpqError):
    """A run needs more memory than it may use, however it is cut."""

    code = "insufficient_memory"

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(needed, limit)
        self.needed, self.limit = needed, limit

    def __str__(self) -> str:
        return (
            f"this run needs about {self.needed / 1e9:.1f} GB of memory, and may use {self.limit / 1e9:.1f} GB here; "
            "take a larger machine, or a recipe that looks at fewer calibration tokens"
        )


class ArtifactError(SpqError):
    """A model folder is incomplete, malformed, or of an unknown format."""

    code = "artifact_load_failed"


class TokenizerError(ArtifactError):
    """A model's tokenizer cannot be built, or does not fit its embedding."""

    code = "tokenizer_mismatch"


class StateMismatchError(ArtifactError):
    """What an interrupted run left belongs to another model, recipe, calibration or version."""

    code = "state_mismatch"


class DigestMismatchError(ArtifactError):
    """Stored bytes are not the bytes the manifest lists."""

    def __init__(self, file: str, expected: str, actual: str) -> None:
        super().__init__(file, expected, actual)
        self.file = file
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"{self.file}: sha256 is {self.actual[:12]}…, the manifest lists {self.expected[:12]}…; "
            "the file was changed or cut short, fetch the artifact again"
        )
