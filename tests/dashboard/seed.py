"""A service full of jobs of every kind: what pages show, without a worker."""

import json
from datetime import timedelta
from pathlib import Path

from sqlalchemy import inspect, update

from app.db.attempts import Attempt, FinishedFile, claim
from app.db.job_lists import JobFilter, job_page
from app.db.jobs import JobRepository, NewJob
from app.db.models import Job
from app.db.session import Database, now
from app.db.sweeps import NewMember, NewSweep, SweepRepository, sweep_members
from app.db.workers import note_presence
from spq_core.evaluation.verdict import headline
from spq_core.recipe.catalog import resolve

HOSTILE = "<img src=x onerror=alert(1)>\u05d0"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def figures(size, kl, perplexity=23.0):
    common = {
        "dataset": "wikitext2", "windows": 32, "tokens": 32736, "perplexity": 22.7, "perplexity_se": 2.5,
        "resident_bytes": 270_000_000, "prefill_tokens_per_second": 900.0, "decode_tokens_per_second": 10.0,
        "kl": None, "kl_se": None, "top1": None, "perplexity_ratio": None, "perplexity_ratio_se": None,
    }  # fmt: skip
    source = common | {"name": "source", "bytes_on_disk": 269_000_000}
    compared = {"perplexity_ratio": perplexity / 22.7, "perplexity_ratio_se": 0.003, "top1": 0.96}
    int8 = (
        common
        | compared
        | {
            "name": "int8",
            "bytes_on_disk": 135_500_000,
            "kl": 0.0039,
            "kl_se": 9e-5,
            "perplexity": 22.8,
        }
    )
    result = common | compared | {
        "name": "result", "bytes_on_disk": size, "kl": kl, "kl_se": kl / 30, "perplexity": perplexity,
        "decode_tokens_per_second": 22.0,
    }  # fmt: skip
    return [source, int8, result]


def result(size, kl, gates=(), **more):
    rows = figures(size, kl)
    texts = {name: {row["name"]: row for row in rows} for name in ("wikitext2", "builtin")}
    return {
        "rows": rows,
        "texts": texts,
        "gates": list(gates),
        "missing": None,
        "load_check": {},
        "compression": {},
        "estimate": {
            "artifact_bytes": {"low": 0.9 * size, "expected": size, "high": 1.2 * size},
            "seconds": {"low": 60, "expected": 120, "high": 360},
            "peak_bytes": 10**9,
        },
        "measured": {"artifact_bytes": size, "seconds": 133.0, "peak_bytes": 9 * 10**8},
    } | more


LAYERS = [
    {"layer": f"model.layers.{layer}.{matrix}", "stage": "quantize", "applied": layer != 2, "reason": "" if layer != 2 else "left alone",
     "figures": {"bits": 4.0 + layer, "relative_error": 0.01 * layer}}
    for layer in range(4) for matrix in ("self_attn.q_proj", "mlp.up_proj")
]  # fmt: skip
FILES = [
    FinishedFile(
        path="config.json",
        bytes=2,
        sha256="44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    )
]
GATE = {
    "figure": "kl",
    "dataset": "wikitext2",
    "kind": "max",
    "limit": 0.05,
    "measured": 0.51,
    "passed": False,
}


def add(database: Database, tenant="alice", recipe="small", model=MODEL, labels=None, **request):
    document = resolve(recipe)
    new = NewJob(
        request={
            "model": {"repo_id": model, "revision": "main", "path": None}, "recipe": recipe,
            "evaluation": {"perplexity": ["wikitext2", "builtin"], "limit": 32}, "output": None, "labels": labels or {},
            "limits": {}, "hub_token": None, "webhook": None, **request,
        },
        recipe=document.document(), recipe_sha256=document.sha256(), model_name=model, max_attempts=3,
    )  # fmt: skip
    with database.write() as session:
        return JobRepository(session, tenant).add(new, now(session)).id


def take(database, job_id, worker="w1"):
    return Attempt(database, claim(database, job_id, worker, 3600.0))


def progress(fraction, stage="compress", done=12, total=60):
    begun = {
        "started_at": "2030-01-01T00:00:00+00:00",
        "ended_at": None,
        "done": done,
        "total": total,
    }
    ended = begun | {"ended_at": "2030-01-01T00:01:00+00:00"}
    return {
        "stage": stage, "stage_id": "compress", "done": done, "total": total, "unit": "blocks", "message": "layer 12",
        "fraction": done / total, "overall_fraction": fraction,
        "stages": {"download": ended, "preflight": ended, "sensitivity": ended, "compress": begun},
    }  # fmt: skip


def whole_course():
    """Of a job that came to its end."""
    names = (
        "download",
        "preflight",
        "sensitivity",
        "compress",
        "load_gate",
        "int8",
        "speed",
        "measure",
    )
    times = {
        name: {"started_at": f"2030-01-01T00:{at:02d}:00+00:00", "ended_at": f"2030-01-01T00:{at + 1:02d}:00+00:00"}
        for at, name in enumerate(names)
    }  # fmt: skip
    return progress(0.99) | {"stage_id": "measure", "stages": times}


def note_seeded_worker(database: Database) -> None:
    """A worker was heard of just now."""
    note_presence(
        database,
        "w1",
        {
            "device": "cpu",
            "threads": 2,
            "isolation": ["calls"],
            "versions": {"spq": "1", "torch": "2.13.0"},
            "max_run_bytes": 8 << 30,
            "max_run_disk_bytes": None,
        },
    )


def seed(database: Database) -> dict[str, str]:
    """One job of each kind; returns their ids by what they are."""
    note_seeded_worker(database)
    found = {}
    found["succeeded"] = add(database, labels={"team": "search"})
    attempt = take(database, found["succeeded"])
    attempt.log(["stage 1 of 9: download the model", "a line"])
    attempt.progress("throughput", whole_course())
    attempt.succeed(result=result(75_000_000, 0.0278), layers=LAYERS, metrics=[], files=FILES)
    found["better"] = add(database, recipe="balanced")
    attempt = take(database, found["better"])
    attempt.progress("throughput", whole_course())
    attempt.succeed(result=result(125_000_000, 0.0020), layers=[], metrics=[], files=[])
    found["gate"] = add(database, recipe="spq-paper")
    take(database, found["gate"]).fail(
        {"code": "quality_gate_failed", "message": "KL from the source on wikitext2 is 0.51, the recipe allows 0.05"},
        result=result(188_000_000, 0.51, [GATE]), layers=[], metrics=[], files=[],
    )  # fmt: skip
    found["unmeasured"] = add(database)
    missing = {"code": "out_of_host_memory", "message": "measuring failed: too little memory"}
    take(database, found["unmeasured"]).succeed(
        result=result(1, 0.1) | {"rows": [], "texts": {}, "missing": missing},
        layers=[],
        metrics=[],
        files=[],
    )
    found["failed"] = add(database, model="meta/does-not-exist")
    take(database, found["failed"]).fail(
        {"code": "model_not_found", "message": "the Hub has no model meta/does-not-exist"}
    )
    found["canceled"] = add(database)
    with database.write() as session:
        JobRepository(session, "alice").cancel(found["canceled"])
    found["hostile"] = add(database, labels={"note": HOSTILE, "long": "x" * 500})
    found["again"] = add(database, model="org/stumbles")
    take(database, found["again"]).give_back("hub_unavailable")
    found["running"] = add(database)
    take(database, found["running"]).progress("compress: svd", progress(0.4), run_left=900.0)
    found["sweep"] = add_sweep(database)
    found["foreign"] = add(database, tenant="bob", model="bob/secret")
    return found


MEASURED_SWEEP = Path(__file__).resolve().parents[2] / "benchmarks/results/sweeps/baselines.json"


def add_sweep(database: Database, tenant="alice") -> str:
    """A sweep that has ended, with the figures of one that ran."""
    measured = json.loads(MEASURED_SWEEP.read_text(encoding="utf-8"))
    members = [
        NewMember(
            number=one["number"], fields=one["fields"], recipe=resolve(one["fields"]["recipe"]).document(),
            recipe_sha256=one["recipe_sha256"], estimate=one["estimate"],
        )
        for one in measured["members"]
    ]  # fmt: skip
    request = {
        "model": {"path": measured["model"]}, "evaluation": measured["evaluation"], "labels": {}, "limits": {},
        "dataset": None, "webhook": None, "publish": None, "max_parallel": 2, "sweep": "baselines",
    }  # fmt: skip
    new = NewSweep(
        request=request, sweep=measured["sweep"], model_name=measured["model"], source_commit=None,
        max_parallel=2, members=members,
    )  # fmt: skip
    with database.write() as session:
        row = SweepRepository(session, tenant).add(new, now(session))
        for member, one in zip(sweep_members(session, row.id), measured["members"], strict=True):
            member.status, member.row = one["status"], one["row"]
        row.beside, row.status, row.finished_at = measured["beside"], "finished", now(session)
        return row.id


def fill(database: Database, count: int) -> None:
    """Very many jobs that have ended, like one that has."""
    with database.write() as session:
        (model,) = job_page(session, "alice", JobFilter(recipe="balanced"), limit=1)
        columns = {name: getattr(model, name) for name in inspect(Job).column_attrs.keys()}  # noqa: SIM118 - a mapping's own names
        many = [
            columns
            | {
                "id": f"job_{number:032x}",
                "created_at": model.created_at - timedelta(seconds=number + 60),
            }
            for number in range(count)
        ]
        session.execute(Job.__table__.insert(), many)
        session.execute(update(Job).where(Job.id == model.id).values(**headline(model.result)))
