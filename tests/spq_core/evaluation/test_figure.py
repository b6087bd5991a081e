import pytest

from spq_core.errors import EvaluationError
from spq_core.evaluation.drawing import require_drawable
from spq_core.evaluation.figure import write_figure
from spq_core.evaluation.summary import Row


def row(name, **changes):
    figures = {
        "name": name, "bytes_on_disk": 1_000_000, "resident_bytes": 1, "dataset": "builtin",
        "ppl_paper": None, "prefill_tokens_per_second": None, "decode_tokens_per_second": None,
    }  # fmt: skip
    quality = {"perplexity": 20.0, "tokens": 10, "kl": 0.01, "top1": 0.9}
    quality |= {key: changes.pop(key) for key in list(changes) if key in quality}
    return Row(**(figures | changes), quality=quality)


@pytest.mark.parametrize("speed", [None, 12.5])
def test_every_model_is_named_in_the_picture(tmp_path, speed):
    rows = [
        row("source", kl=None, top1=None, decode_tokens_per_second=speed),
        row("ours", decode_tokens_per_second=speed),
    ]
    write_figure(rows, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert drawn.count("<!-- ours -->") == (3 if speed else 2)
    assert drawn.count("<!-- source -->") == (2 if speed else 1)


@pytest.mark.parametrize(("name", "words"), [("a.txt", "written as"), ("no/a.png", "not a folder")])
def test_what_cannot_be_written_is_said_before_measuring(tmp_path, name, words):
    with pytest.raises(EvaluationError, match=words):
        require_drawable(tmp_path / name)
