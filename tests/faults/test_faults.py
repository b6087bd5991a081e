"""One short schedule; `make faults N=100` runs long ones."""

from tests.faults.run import one_schedule


def test_a_schedule_of_faults_breaks_no_promise(tmp_path):
    (tmp_path / "stack").mkdir()
    outcome = one_schedule(seed=7, jobs=3, faults=5, pause=2.0, root=tmp_path)
    assert outcome["violations"] == [], outcome
    assert sum(outcome["statuses"].values()) == 3
