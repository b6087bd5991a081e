"""What people read of a sweep: never more than is known."""

import csv
import io

import pytest

from spq_core.sweep.document import parse_sweep
from spq_core.sweep.front import judge
from spq_core.sweep.tables import sweep_table, write_table

TASKS = {"quiz": {"acc": 0.5, "acc_se": 0.01, "questions": 900.0}}


def row(size=500, kl=0.01, **more):
    return {
        "dataset": "wikitext2", "windows": 32, "tokens": 32736, "bytes_on_disk": size, "bytes_ratio": size / 1000,
        "perplexity": 20.0, "perplexity_se": 0.5, "kl": kl, "kl_se": None if kl is None else kl / 50, "top1": 0.9,
    } | more  # fmt: skip


def document(members, objective=None, **more):
    sweep = parse_sweep({"recipes": ["int8"], "objective": objective or {"minimize": "kl"}})
    listed = [
        {"number": number, "fields": {"recipe": f"r{number}"}, **one}
        for number, one in enumerate(members, start=1)
    ]
    done = {one["number"]: one["row"] for one in listed if one["status"] == "succeeded"}
    beside = {"int8": row(500), "source": row(1000, None)}
    verdict = judge(sweep, done).document()
    return {
        "sweep": sweep.model_dump(mode="json"),
        "members": listed,
        "beside": beside,
        **verdict,
    } | more


def done(**more):
    return {"status": "succeeded", "row": row(**more)}


def test_winners_that_were_measured_once_more_have_a_table_of_their_own():
    again = row(kl=0.02, dataset="other", decode_tokens_per_second=12.0)
    beside = {
        "source": row(1000, None, decode_tokens_per_second=8.0),
        "int8": row(500, decode_tokens_per_second=10.0),
    }
    published = {"repo_id": "me/best", "commit": "c"}
    members = [
        done()
        | {
            "final": {"status": "succeeded", "row": again, "beside": beside, "published": published}
        },
        done(kl=0.3) | {"final": {"status": "failed", "error": {"message": "no room"}}},
        done(kl=0.4),
    ]
    words = sweep_table(document(members)).split("measured once more")[1].splitlines()
    assert (
        "| other | 20.000 ± 0.500 | 0.0200 ± 0.0004 | 1.50 of the source | 1.25 of the source |"
        in words[2]
    )
    assert words[2].endswith("published as me/best |")
    assert words[3].endswith("failed: no room |")
    assert len(words) == 4


LIMITED = {"minimize": "kl", "subject_to": {"kl": {"max": 1e-9}}}


@pytest.mark.parametrize(
    ("members", "objective", "words"),
    [
        ([{"status": "waiting"}], None, "No member is done yet."),
        ([{"status": "failed", "error": {"message": "no"}}], None, "No member came to a result."),
        ([{"status": "skipped", "stopped": "infeasible"}], None, "No member was made."),
        ([done()], LIMITED, "none keeps the limits"),
        ([done(), {"status": "running"}], LIMITED, "none so far keeps the limits"),
        ([done()], {"maximize": "retention"}, "none has that figure (the source knows no task"),
        ([done()], None, "Lowest kl: member 1 (r1). It is the best of 1"),
        ([done(), {"status": "running"}], None, "Lowest kl so far: member 1"),
    ],
)
def test_the_verdict_says_why_there_is_no_best(members, objective, words):
    assert words in sweep_table(document(members, objective))


def test_small_figures_keep_digits_and_broken_limits_are_marked():
    limits = {"minimize": "kl", "subject_to": {"kl": {"max": 3e-5}}}
    table = sweep_table(document([done(kl=3.24e-5), done(kl=1.2e-5, size=600)], limits))
    assert "3.2e-05 ± 6.5e-07" in table
    assert "front, breaks kl" in table
    assert table.index("| source |") < table.index("| int8 |")
    assert "Measured on wikitext2, 32 windows, 32,736 predicted tokens." in table


def test_tasks_have_columns_in_both_tables_and_text_is_no_formula():
    members = [done(tasks=TASKS, retention=0.97), {"status": "skipped", "stopped": "infeasible",
        "estimate": {"artifact_bytes": {"expected": 69_000_000}}}]  # fmt: skip
    found = document(members)
    found["members"][1]["fields"]["metadata.description"] = "=HYPERLINK(1)"
    table = sweep_table(found)
    assert "| quiz | retention |" in table
    assert "50.0% ± 1.0% | 97.0% |" in table
    assert "too large by its estimate (69,000,000 bytes)" in table
    content = io.StringIO()
    write_table(found, csv.writer(content))
    first, second = csv.DictReader(io.StringIO(content.getvalue()))
    assert (first["quiz.acc"], first["retention"]) == ("0.5", "0.97")
    assert second["metadata.description"] == "'=HYPERLINK(1)"
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
