"""Child program: compress and measure. Opens untrusted models; has no token and needs no network."""

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from spq_core.artifact.manifest import FileEntry, artifact_files, file_entry, read_manifest
from spq_core.data.texts import Text, builtin_text, find_text, texts_for
from spq_core.errors import DatasetError, StateMismatchError
from spq_core.evaluation.known import Shelf
from spq_core.evaluation.loading import choose_device
from spq_core.evaluation.measure import task_files
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.machine import machine_failure
from spq_core.models.clean_copy import SourceModel
from spq_core.models.weight_files import stored_bytes
from spq_core.recipe.document import Recipe, parse_recipe
from spq_core.streaming.run_state import left_behind
from spq_core.workflow.finished import finished_before, finished_run, note_finished
from spq_core.workflow.fresh_process import fresh_process_ready
from spq_core.workflow.job import compress_and_measure
from spq_core.workflow.load_gate import LoadGateError
from spq_core.workflow.result import RunResult
from worker.children.messages import File, Files, Finished, Kept, Logged, Resulted, RunSpec
from worker.children.protocol import PipeProgress, emit, serve


def run(spec: RunSpec) -> None:
    """Run one job's recipe as the specification says."""
    transformers.utils.logging.disable_progress_bar()
    if spec.threads:
        torch.set_num_threads(spec.threads)
    recipe = parse_recipe(spec.recipe)
    out = Path(spec.out)
    try:
        result = measured(spec, recipe, out)
    except LoadGateError:
        if out.exists():  # the recipe asks to keep it
            emit(Kept(files=listed(out)))
        raise
    emit(Resulted(document=result.document(), files=listed(out)))
    result.check_gates()


def listed(folder: Path) -> Files:
    """Size and digest of each file."""
    return {name: _file(file_entry(path)) for name, path in artifact_files(folder).items()}


def _file(entry: FileEntry) -> File:
    return File.model_validate(entry, from_attributes=True)


def tell_finished(out: Path, document: dict[str, Any]) -> None:
    """Tell the supervisor that the artifact is finished, whatever happens while it is measured."""
    known = read_manifest(out).files
    files = {
        name: _file(known[name] if name in known else file_entry(path))
        for name, path in artifact_files(out).items()
    }
    emit(Finished(document=document, files=files))


def measured(spec: RunSpec, recipe: Recipe, out: Path) -> RunResult:
    """The whole run."""
    evaluation = EvaluationSettings.model_validate(spec.evaluation)
    folders = [Path(folder) for folder in spec.text_folders]
    source = SourceModel(
        folder=Path(spec.source.folder),
        name=spec.source.name,
        revision=spec.source.revision,
        reading=spec.source.reading,
    )
    texts = texts_for(
        recipe.looks_at, evaluation.perplexity, partial(text_or_builtin, folders=folders),
        partial(text_to_mix_in, folders=folders),
    )  # fmt: skip
    tasks = task_files(evaluation, folders)
    shelf = Shelf(
        None if spec.figures is None else Path(spec.figures),
        None if spec.leave is None else Path(spec.leave),
        spec.job_id,
    )

    def compressed(*, resume: bool) -> RunResult:
        return compress_and_measure(
            source, recipe, out, texts=texts, evaluation=evaluation, scratch=Path(spec.scratch),
            progress=PipeProgress(partial(tell_finished, out)), license_id=spec.source.license,
            device=choose_device(spec.device), resume=resume, tasks=tasks, shelf=shelf,
        )  # fmt: skip

    if spec.finished is not None and finished_run(out, recipe) is None:
        before = finished_before(out, spec.finished.compression, spec.finished.load_check)
        if stored_bytes(source.folder) != before.report.source_bytes:
            raise StateMismatchError(f"{source.name} is not the model that {out.name} was made of")
        note_finished(out, before, source.folder)
    if left_behind(out) or finished_run(out, recipe) is not None:
        emit(Logged(text="going on with what an earlier attempt has finished"))
        try:
            return compressed(resume=True)
        except (StateMismatchError, OSError, ValueError, KeyError, SafetensorError) as error:
            of_others = isinstance(error, StateMismatchError)
            finished = finished_run(out, recipe) is not None and not of_others
            if machine_failure(error) is not None or finished:
                raise  # what is finished has hours in it
            # That attempt's worker had other versions, or its machine died while it wrote.
            emit(Logged(text=f"starting anew: {type(error).__name__}: {error}"))
    empty(out.parent)
    return compressed(resume=False)


def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def text_or_builtin(name: str, folders: list[Path]) -> Text:
    """The named text from the first folder that has it, else the built-in one, and a log line."""
    try:
        return text_in(name, folders)
    except DatasetError:
        text = builtin_text()
    emit(Logged(text=f"dataset {name} is not here; using {text.origin} instead"))
    return text


def text_to_mix_in(name: str, folders: list[Path]) -> Text:
    """The named text from the first folder that has it.

    Raises:
        DatasetError: none has; a log line says so.
    """
    try:
        return text_in(name, folders)
    except DatasetError:
        emit(Logged(text=f"dataset {name} is not here; calibration goes without it"))
        raise


def text_in(name: str, folders: list[Path]) -> Text:
    """The named text from the first folder that has it.

    Raises:
        DatasetError: none has.
    """
    for folder in folders:
        with suppress(DatasetError):
            return find_text(name, folder)
    return find_text(name, None)


if __name__ == "__main__":
    with fresh_process_ready():  # before threads and devices are in use
        serve(RunSpec, run)
