import pytest

from worker.process import PASSIVE_THREADS, SPINNING_THREADS
from worker.runtime import Runtime
from worker.settings import WorkerSettings


def runtime(tmp_path, **settings):
    return Runtime(
        WorkerSettings(
            database_url=f"sqlite:///{tmp_path / 'spq.db'}", artifact_dir=tmp_path / "artifacts",
            scratch_dir=tmp_path / "scratch", broker_url="redis://localhost", **settings,
        ),
        database=None, worker_id="w",
    )  # fmt: skip


@pytest.mark.parametrize("spin", [False, True])
def test_only_a_runner_that_is_alone_spins(tmp_path, spin):
    held = runtime(tmp_path, spin=spin, threads=2)
    runner = held.runner().extra_environment
    assert (runner.get("GOMP_SPINCOUNT") == SPINNING_THREADS["GOMP_SPINCOUNT"]) == spin
    assert runner["OMP_NUM_THREADS"] == "2"
    for other in (held.fetcher(), held.publisher()):
        assert "GOMP_SPINCOUNT" not in other.extra_environment
    assert PASSIVE_THREADS == {"OMP_WAIT_POLICY": "PASSIVE"}
