"""The page of sweeps: those that are shipped, and every key of the document."""

from collections.abc import Iterator

import yaml

from spq_core.sweep.document import Sweep, shipped_sweep, shipped_sweeps
from worker.reference.recipes import sections
from worker.reference.schema import cell


def page() -> Iterator[str]:
    """Its lines."""
    yield "# Sweeps"
    yield ""
    yield "A sweep is a JSON or YAML document. A request names one that is shipped, or brings its own. Unknown keys are refused."
    yield ""
    yield "## Shipped"
    for name in shipped_sweeps():
        sweep = shipped_sweep(name)
        shown = sweep.model_dump(mode="json", exclude_unset=True)
        yield ""
        yield f"### `{name}`"
        yield ""
        yield cell(shown.pop("description"))
        yield ""
        yield "```yaml"
        yield yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=110).strip()
        yield "```"
    yield ""
    yield "## Keys"
    yield from sections("Sweep", Sweep.model_json_schema())
