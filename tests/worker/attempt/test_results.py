"""From a run's document to rows of the database."""

from worker.attempt.results import metric_rows

COST = {"seconds": 1.0, "peak_rss_bytes": 2, "ratio_to_source": 0.5, "ratio_to_fp32": 0.25}


def test_every_figure_of_every_task_and_text_is_a_row():
    tasks = {"quiz": {"acc": 0.5, "acc_se": None, "chance": 0.25, "questions": 8.0}}
    row = {"name": "result", "dataset": "a", "perplexity": 20.0, "kl": None, "tasks": tasks}
    models = {"result": {"quality": {"a": {"perplexity": 20.0}, "b": {"perplexity": 30.0}}}}
    rows = metric_rows(
        {"compression": COST, "evaluation": {"models": models}, "rows": [row | {"retention": 0.9}]}
    )
    found = {(one["name"], one["dataset"]): one["value"] for one in rows}
    assert found["perplexity", "a"] == 20.0
    assert found["perplexity.b", "b"] == 30.0
    assert found["quiz.acc", "quiz"] == 0.5
    assert found["quiz.questions", "quiz"] == 8.0
    assert found["retention", "a"] == 0.9
    assert ("quiz.acc_se", "quiz") not in found
    assert ("tasks", "a") not in found
