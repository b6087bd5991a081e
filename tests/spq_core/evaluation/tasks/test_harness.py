"""Tasks by the harness, against what a plain computation gives on the same model."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spq_core.compression.compress import SourceModel, compress
from spq_core.data.tasks import TaskData, find_task, read_rows
from spq_core.errors import DatasetError, EvaluationError
from spq_core.evaluation.tasks import harness
from spq_core.evaluation.tasks.answers import compared_answers
from spq_core.evaluation.tasks.definitions import check_task, find_definition
from spq_core.evaluation.tasks.harness import put_tasks
from spq_core.evaluation.tasks.table import tasks_table
from spq_core.recipe.catalog import resolve
from tests.models import save_tiny

QUESTIONS = [
    {
        "question": f"What is {one} and {one}?",
        "mc1_targets": {f"It is {2 * one}.": 1, f"It is {one}.": 0, "Nobody knows.": 0},
        "mc2_targets": {f"It is {2 * one}.": 1, f"{2 * one}.": 1, f"It is {one}.": 0},
    }
    for one in range(3, 9)
]
SUMS = [{"question": f"{one} and 1?", "answer": f"Count on.\n#### {one + 1}"} for one in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions as people have them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "truthfulqa-mc.json").write_text(json.dumps(QUESTIONS))
    for name, rows in (("gsm8k-test", SUMS[:3]), ("gsm8k-train-6", SUMS[3:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tasks") / "model")


@pytest.fixture(scope="module")
def models(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "out"
    compress(SourceModel(folder=source, name="tiny"), resolve("int8"), out)
    return {
        "source": AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        "int8": AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32),
    }


def measure_tasks(models, tokenizer, tasks, *, reference, **more):
    answers = {
        name: put_tasks(name, model, tokenizer, tasks, **more) for name, model in models.items()
    }
    return compared_answers(answers, reference)


def likelihood(model, tokenizer, context, choice):
    ids = tokenizer(context + choice, return_tensors="pt").input_ids
    start = len(tokenizer(context).input_ids)
    with torch.no_grad():
        log = model(ids).logits[0, :-1].double().log_softmax(-1)
    return float(log[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum())


def test_choices_are_scored_as_a_plain_computation_scores_them(models, source, folder):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tasks = {name: find_task(name, [folder]) for name in ("truthfulqa_mc1", "truthfulqa_mc2")}
    figures = measure_tasks(models, tokenizer, tasks, reference="source", length=2048)
    import yaml
    from jinja2 import Template

    class Loader(yaml.SafeLoader):
        pass

    path = find_definition("truthfulqa_mc1").path
    prompt = Template(yaml.load(path.read_text(), Loader)["doc_to_text"])
    right, shares = [], []
    for question in QUESTIONS:
        context = prompt.render(question=question["question"])
        scores = [
            likelihood(models["source"], tokenizer, context, f" {choice}")
            for choice in question["mc1_targets"]
        ]
        right.append(scores.index(max(scores)) == 0)
        several = torch.tensor(
            [
                likelihood(models["source"], tokenizer, context, f" {choice}")
                for choice in question["mc2_targets"]
            ]
        ).softmax(0)
        shares.append(float(several[:2].sum()))
    assert figures["source"]["truthfulqa_mc1"]["acc"] == pytest.approx(sum(right) / len(right))
    mean = sum(shares) / len(shares)
    assert figures["source"]["truthfulqa_mc2"]["acc"] == pytest.approx(mean, rel=1e-4)
    assert figures["source"]["truthfulqa_mc1"]["chance"] == pytest.approx(1 / 3)
    assert figures["source"]["truthfulqa_mc2"]["chance"] == pytest.approx(2 / 3)
    assert abs(figures["int8"]["truthfulqa_mc2"]["acc_change"]) < 0.05
    assert figures["int8"]["truthfulqa_mc1"]["questions"] == len(QUESTIONS)


def test_free_answers_are_read_in_two_ways_and_ties_stay(models, source, folder):
    tokenizer = AutoTokenizer.from_pretrained(source)
    head = models["int8"].get_output_embeddings()
    tasks = {"gsm8k": find_task("gsm8k", [folder])}
    seen = []
    figures = measure_tasks(
        {"int8": models["int8"]}, tokenizer, tasks, reference=None, length=512, limit=2, shots=1,
        after_task=seen.append,
    )["int8"]["gsm8k"]  # fmt: skip
    assert figures["questions"] == 2
    assert {"exact_match_strict-match", "exact_match_flexible-extract"} <= set(figures)
    assert figures["chance"] == 0.0
    assert models["int8"].get_output_embeddings() is head
    assert "tie_weights" not in vars(models["int8"])
    assert seen == ["gsm8k, int8"]


def test_what_is_not_there_is_named_with_what_to_do(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"put arc_easy\.jsonl into the folder"):
        find_task("arc_easy", [folder])
    with pytest.raises(DatasetError, match="is not the name of a task"):
        find_task("../secrets", [folder])
    with pytest.raises(EvaluationError, match="has no task 'no_such_task'"):
        find_definition("no_such_task")
    (tmp_path / "quiz.jsonl").write_text("[1, 2]\n")
    with pytest.raises(DatasetError, match="holds no questions"):
        read_rows(tmp_path / "quiz.jsonl")
    (tmp_path / "quiz.jsonl").write_text("{")
    with pytest.raises(DatasetError, match="is not JSON"):
        read_rows(tmp_path / "quiz.jsonl")


def test_questions_that_do_not_fit_a_task_are_said_to(models, source, tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text('{"query": "1 and 1?"}\n')
    tokenizer = AutoTokenizer.from_pretrained(source)
    with pytest.raises(EvaluationError, match="gsm8k cannot be put with these questions"):
        measure_tasks(
            {"source": models["source"]}, tokenizer,
            {"gsm8k": TaskData(tmp_path / "gsm8k.jsonl", None)}, reference=None, length=512, shots=0,
        )  # fmt: skip


EASY = [
    {
        "question": f"Which is {one}?",
        "choices": {"text": [f"This is {one}.", "None of it is."], "label": ["A", "B"]},
        "answerKey": "A",
    }
    for one in range(4)
]


def test_a_task_that_shows_no_examples_needs_no_file_of_them(models, source, tmp_path):
    (tmp_path / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, EASY)))
    data = find_task("arc_easy", [tmp_path])
    check_task("arc_easy", data, None)
    figures = measure_tasks(
        {"source": models["source"]}, AutoTokenizer.from_pretrained(source), {"arc_easy": data},
        reference=None, length=512,
    )["source"]["arc_easy"]  # fmt: skip
    assert figures["questions"] == len(EASY)
    assert figures["chance"] == 0.5
    assert {"acc", "acc_norm"} <= set(figures)


def test_too_few_examples_are_said_before_any_work(folder, tmp_path):
    data = find_task("gsm8k", [folder])
    check_task("gsm8k", data, None)
    shutil.copy(data.questions, tmp_path / "gsm8k.jsonl")
    alone = find_task("gsm8k", [tmp_path])
    message = r"shows 5 examples .* has 0; put gsm8k-train\.jsonl there, or set fewshot to 0"
    with pytest.raises(EvaluationError, match=message):
        check_task("gsm8k", alone, None)
    check_task("gsm8k", alone, 0)
    with pytest.raises(EvaluationError, match="shows 7 examples"):
        check_task("gsm8k", data, 7)


def test_tasks_of_every_spelling_are_found_and_texts_are_none():
    assert find_definition("mmlu_anatomy").path.name == "mmlu_anatomy.yaml"
    with pytest.raises(EvaluationError, match=r"no questions .* evaluation\.perplexity"):
        find_definition("wikitext")


def test_a_task_of_many_subjects_is_put_subject_by_subject(models, source, tmp_path):
    """The harness by itself, on each subject, is what the whole is made of."""
    rows = [
        {"question": f"{subject} {at}?", "choices": ["a", "b", "c", "d"], "answer": at % 4, "subject": subject}
        for subject in ("virology", "anatomy")
        for at in range(5)
    ]  # fmt: skip
    (tmp_path / "mmlu.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = find_task("mmlu", [tmp_path])
    check_task("mmlu", data, None)
    tokenizer = AutoTokenizer.from_pretrained(source)
    answers = put_tasks("source", models["source"], tokenizer, {"mmlu": data}, length=512)["mmlu"]
    wanted = []
    for subject in ("anatomy", "virology"):
        for row in (one for one in rows if one["subject"] == subject):
            letters = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))  # fmt: skip
            context = (
                f"The following are multiple choice questions (with answers) about {subject}.\n\n"
                f"{row['question']}\n{letters}\nAnswer:"
            )
            scores = [likelihood(models["source"], tokenizer, context, f" {one}") for one in "ABCD"]
            wanted.append(float(scores.index(max(scores)) == row["answer"]))
    assert answers.answers["acc"] == wanted
    assert answers.chance == 0.25
    with pytest.raises(EvaluationError, match="mmlu_anatomy shows 2 examples"):
        check_task("mmlu", data, 2)
    (tmp_path / "mmlu.jsonl").write_text(json.dumps({"question": "?"}))
    with pytest.raises(DatasetError, match="a question has no subject"):
        check_task("mmlu", data, None)


def test_files_of_questions_are_read_as_people_have_them(tmp_path):
    odd = {"question": "a\u2028b\u0085c", "answer": "1"}
    path = tmp_path / "quiz.jsonl"
    path.write_text("\ufeff" + json.dumps(odd, ensure_ascii=False) + "\r\n\r\n")
    assert read_rows(path) == [odd]
    path.write_bytes('{"question": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"quiz\.jsonl is not JSON: .*utf-8"):
        read_rows(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DatasetError, match="is not JSON"):
        read_rows(path)


def test_a_long_task_is_heard_of_and_other_errors_stay_what_they_are(
    models, source, folder, monkeypatch
):
    monkeypatch.setattr(harness, "HEARD_SECONDS", 0.0)
    tokenizer, heard = AutoTokenizer.from_pretrained(source), []
    tasks = {"truthfulqa_mc1": find_task("truthfulqa_mc1", [folder])}

    def put(**more):
        one = {"source": models["source"]}
        return measure_tasks(one, tokenizer, tasks, reference=None, length=512, **more)

    put(while_busy=heard.append)
    assert set(heard) == {"truthfulqa_mc1, source"}
    assert not models["source"]._forward_hooks, "nothing of it stays on the model"

    def full(_message):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        put(while_busy=full)

    def enough(_message):
        raise RuntimeError("stopped by whoever was told")

    with pytest.raises(RuntimeError, match="^stopped by"):
        put(while_busy=enough)


def test_predictions_that_are_no_numbers_make_no_figures(source, folder):
    broken = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    figures = measure_tasks(
        {"source": whole, "result": broken}, AutoTokenizer.from_pretrained(source),
        {"truthfulqa_mc2": find_task("truthfulqa_mc2", [folder])}, reference="source", length=512,
    )["result"]["truthfulqa_mc2"]  # fmt: skip
    assert figures["acc"] is None
    assert figures["acc_change"] is None
    assert figures["acc_flips"] == 1.0
    table = tasks_table([{"name": "result", "tasks": {"truthfulqa_mc2": figures}}])
    assert "not a number" in table


def test_nothing_of_the_harness_reaches_the_log(
    models, source, folder, capfd, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # outside a repository git complains
    tasks = {"truthfulqa_mc1": find_task("truthfulqa_mc1", [folder])}
    tokenizer = AutoTokenizer.from_pretrained(source)
    one = {"source": models["source"]}
    measure_tasks(one, tokenizer, tasks, reference=None, length=512, limit=1)
    assert capfd.readouterr() == ("", "")


def test_the_authors_files_are_read(shared, tmp_path):
    shutil.copy(shared / "data" / "truthfulqa-mc.json", tmp_path)
    rows = read_rows(find_task("truthfulqa_mc2", [tmp_path]).questions)
    assert len(rows) == 817
    assert all(row["mc1_targets"]["labels"].count(1) == 1 for row in rows)
    assert find_task("gsm8k", [shared / "data"]).examples.name == "gsm8k-train-300.jsonl"
