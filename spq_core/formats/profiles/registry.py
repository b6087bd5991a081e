"""The profiles there are: one line each. Free of torch."""

from typing import Annotated

from pydantic import AfterValidator, Field

from spq_core.formats.profiles.compact.profile import COMPACT
from spq_core.formats.profiles.compressed_tensors.profile import PORTABLE
from spq_core.formats.profiles.gguf.profile import GGUF
from spq_core.formats.profiles.profile import Profile

PROFILES = (
    COMPACT,
    PORTABLE,
    GGUF,
)


def profile_named(name: str) -> Profile:
    """The profile of a recipe or a manifest.

    Raises:
        ValueError: there is none of that name.
    """
    for profile in PROFILES:
        if profile.name == name:
            return profile
    known = ", ".join(profile.name for profile in PROFILES)
    raise ValueError(f"there is no profile {name!r}; there are: {known}")


def _known(name: str) -> str:
    return profile_named(name).name


ProfileName = Annotated[
    str,
    AfterValidator(_known),
    Field(json_schema_extra={"enum": [profile.name for profile in PROFILES]}),
]
