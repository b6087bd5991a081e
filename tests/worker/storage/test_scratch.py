from worker.storage.scratch import scratch_folder


def test_a_slow_attempt_leaves_the_folder_of_a_later_one_alone(tmp_path):
    with scratch_folder(tmp_path, "job_1", 2) as later, scratch_folder(tmp_path, "job_1", 1):
        assert later.is_dir()
    (tmp_path / "job_1.1").mkdir()
    with scratch_folder(tmp_path, "job_1", 2):
        assert not (tmp_path / "job_1.1").exists()
