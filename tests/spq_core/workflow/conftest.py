"""What tests of whole runs share."""

import pytest

from spq_core.workflow.load_gate import LoadCheck


@pytest.fixture
def _open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let artifacts pass the load gate unseen: it has tests of its own, and each look starts a process that loads torch."""
    monkeypatch.setattr(
        "spq_core.workflow.job.check_loads", lambda *_arguments: LoadCheck(0.0, 0.0, 0.0)
    )
