from worker.attempt.job_log import CUT, MAX_LINE, JobLog


def test_a_log_ends_somewhere(monkeypatch):
    monkeypatch.setattr("worker.attempt.job_log.MAX_CHARACTERS", 5000)
    lines = []
    log = JobLog(lines.extend)
    for _ in range(10):
        log.note("x" * 10_000)
    assert [len(line) for line in lines[:-1]] == [MAX_LINE, MAX_LINE]
    assert lines[-1] == CUT


def test_a_token_and_what_no_database_holds_are_not_kept():
    lines = []
    log = JobLog(lines.extend, token="hf_secret")
    for text in ("a hf_secret b", "  ", "nul \0 and \ud800"):
        log.note(text)
    assert lines == ["a [token] b", "nul \ufffd and ?"]
