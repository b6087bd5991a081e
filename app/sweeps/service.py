"""What the API can do with sweeps. Each method is one transaction."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db.idempotency import recall, remember
from app.db.keys import Principal
from app.db.quotas import count_request
from app.db.session import Database
from app.db.sweep_models import SweepEvent, SweepMember, SweepRow
from app.db.sweeps import (
    NewMember,
    NewSweep,
    SweepGlance,
    SweepRepository,
    member_counts,
    sweep_glance,
    sweep_members,
)
from app.domain.sweep_errors import (
    SweepNotFoundError,
)
from app.domain.sweep_status import ENDED, SKIPPED, WAITING, SweepStatus
from app.estimates.service import Feasibility
from app.http.event_stream import PAGE, News, StreamedEvent
from app.http.waiting import WaitingRoom
from app.jobs import cursor
from app.jobs.admission import Admission
from app.jobs.repeated import Accepted, asked_document, idempotency, replayed
from app.jobs.requests import ModelReference
from app.sweeps.schemas import MemberView, SweepChange, SweepEventView, SweepPlan, SweepSubmission
from app.sweeps.views import sweep_view
from app.telemetry import log
from app.tracing import current_traceparent
from spq_core.errors import RecipeError
from spq_core.estimate.estimate import estimate
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.shapes import ModelShapes
from spq_core.recipe.suitable import require_suitable
from spq_core.sweep.document import Finals, Sweep, parse_sweep, require_measured, shipped_sweep
from spq_core.sweep.members import Member, members
from spq_core.sweep.search import is_too_large


@dataclass(frozen=True, slots=True)
class SweepService:
    """Use cases; `wake` tells the controller that there is something to do."""

    database: Database
    wake: Callable[[], None]
    submissions_per_minute: int
    """Of one API key, jobs and sweeps together."""
    admission: Admission
    waiting: WaitingRoom
    check_webhook: Callable[[Session, str, str], None]
    feasibility: Feasibility

    def plan(self, caller: Principal, body: SweepSubmission) -> SweepPlan:
        """What `submit` would accept; counts as a submission, for it takes as long.

        Raises:
            RecipeError, UnsupportedModelError, UnsafeModelError, ArtifactError, HubError, ModelNotAllowedError,
            UnknownDatasetError, UnknownTaskError: as for `submit`.
        """
        count_request(self.database, caller.key_id, self.submissions_per_minute)
        sweep, found, commit = self._looked_at(body)
        known = [one.estimate["seconds"]["expected"] for one in found if one.estimate]
        return SweepPlan(
            name=sweep.name, model=body.model.name, source_commit=commit,
            members=[MemberView.model_validate(one) for one in found],
            seconds=sum(known) if known else None,
        )  # fmt: skip

    def submit(self, caller: Principal, body: SweepSubmission, key: str | None) -> Accepted:
        """Accept a sweep: its row, its members and the answer commit together.

        Args:
            key: the Idempotency-Key; a request that came with it before gets the answer it got then.

        Raises:
            RecipeError: the sweep or a recipe is unknown or malformed, or no member can work.
            UnsupportedModelError, UnsafeModelError, ArtifactError, HubError: the model cannot be compressed, as
                far as its headers tell.
            ModelNotAllowedError: the local model is not in an allowed folder.
            UnknownDatasetError: a dataset is neither known nor in the data folder.
            UnknownTaskError: a task's questions are not in the data folder.
            UnsafeWebhookError, WebhooksDisabledError: its webhook cannot be called.
            TokensDisabledError: its Hub token could not be kept.
            QuotaExceededError, RateLimitedError: the tenant or its key may not, now.
            IdempotencyKeyReusedError, RequestInProgressError: see `recall`.
        """
        asked = idempotency(caller.tenant, key, {"sweep": asked_document(caller.tenant, body)})
        if (
            before := replayed(self.database, caller, asked, self.submissions_per_minute)
        ) is not None:
            return before
        rate = count_request(self.database, caller.key_id, self.submissions_per_minute)
        sweep, found, commit = self._looked_at(body)
        request = body.model_dump(mode="json")
        request["evaluation"] = body.settings().model_dump(mode="json")
        new = NewSweep(
            request=request, sweep=sweep.model_dump(mode="json"), model_name=body.model.name,
            source_commit=commit, max_parallel=body.max_parallel, members=found,
            sealed_token=self.admission.sealed(body.hub_token), traceparent=current_traceparent(),
        )  # fmt: skip
        with self.database.write() as session:
            earlier = None if asked is None else recall(session, asked)
            if earlier is not None:
                return Accepted(earlier, rate, replayed=True)
            if body.webhook is not None:
                self.check_webhook(session, caller.tenant, body.webhook.url)
            row = SweepRepository(session, caller.tenant).add(new, rate.counted_at)
            answer = sweep_view(row, sweep_members(session, row.id)).model_dump(mode="json")
            if asked is not None:
                remember(session, asked, answer)
        self.wake()
        log.info("sweep_accepted", sweep_id=row.id, tenant=caller.tenant, members=len(found))
        return Accepted(answer, rate, replayed=False)

    def _looked_at(self, body: SweepSubmission) -> tuple[Sweep, list[NewMember], str | None]:
        """The sweep, its first members, and the commit that the model was looked at."""
        sweep = (
            shipped_sweep(body.sweep) if isinstance(body.sweep, str) else parse_sweep(body.sweep)
        )
        first = members(sweep, body.dataset)
        self.admission.check_local_model(body.model)
        texts = _texts_of(first)
        named = set() if body.dataset is None else {body.dataset}
        finals = sweep.finals or Finals()
        self.admission.check_datasets(
            {*body.settings().perplexity, *texts, *named, *finals.confirm_on}
        )
        require_measured(sweep, body.evaluation.tasks)
        for one in first:
            self.admission.check_tasks(body.evaluation.tasks, one.recipe)
        self.admission.require_known_tasks(finals.tasks)
        token = None if body.hub_token is None else body.hub_token.get_secret_value()
        looked = self.feasibility.look(body.model, token)
        shapes, commit = looked or (None, None)
        found = [_new_member(sweep, one, shapes, body.settings()) for one in first]
        if all(one.status == SKIPPED for one in found):
            why = next((one.error["message"] for one in found if one.error), None)
            raise RecipeError(
                f"sweep: no member can be made: {why or 'all are too large for objective.subject_to'}"
            )
        return sweep, found, commit

    def get(self, tenant: str, sweep_id: str) -> tuple[SweepRow, list[SweepMember]]:
        """Return one sweep, and its members."""
        with self.database.read() as session:
            sweeps = SweepRepository(session, tenant)
            return sweeps.get(sweep_id), sweeps.members(sweep_id)

    def page(
        self, tenant: str, *, limit: int, after: str | None
    ) -> tuple[list[tuple[SweepRow, dict[str, int]]], str | None]:
        """Return a page of sweeps and the cursor of the next one, if there is one."""
        position = cursor.decode(after) if after else None
        with self.database.read() as session:
            rows = SweepRepository(session, tenant).page(limit=limit + 1, after=position)
            counts = member_counts(session, [row.id for row in rows])
        shown = [(row, counts.get(row.id, {})) for row in rows[:limit]]
        more = len(rows) > limit
        return shown, cursor.encode(shown[-1][0].created_at, shown[-1][0].id) if more else None

    def set_status(
        self, tenant: str, sweep_id: str, status: SweepStatus
    ) -> tuple[SweepRow, list[SweepMember]]:
        """Pause, resume or cancel a sweep."""
        return self._change(tenant, sweep_id, lambda sweeps: sweeps.set_status(sweep_id, status))

    def retry(self, tenant: str, sweep_id: str) -> tuple[SweepRow, list[SweepMember]]:
        """Try members again that failed or were stopped."""
        return self._change(tenant, sweep_id, lambda sweeps: sweeps.retry(sweep_id))

    def change(
        self, tenant: str, sweep_id: str, body: SweepChange
    ) -> tuple[SweepRow, list[SweepMember]]:
        """Change how a sweep goes on, and add members.

        Raises:
            RecipeError: a recipe or a path is wrong, all are members already, or there would be too many.
            UnsupportedModelError, UnsafeModelError, ArtifactError, HubError: as for `submit`.
            SweepNotFoundError, SweepEndedError, SweepNotRetryableError: see `SweepRepository.change`.
        """
        more = self._more(self.get(tenant, sweep_id)[0], body) if body.recipes or body.grid else []
        return self._change(
            tenant, sweep_id,
            lambda sweeps: sweeps.change(
                sweep_id, max_parallel=body.max_parallel, labels=body.labels, more=more
            ),
        )  # fmt: skip

    def _more(self, row: SweepRow, body: SweepChange) -> list[NewMember]:
        """Members to add, as far as the model's headers tell of them."""
        sweep = parse_sweep(row.sweep)
        dataset = row.request.get("dataset")
        added = body.model_dump(mode="json", include={"recipes", "grid"})
        found = members(parse_sweep(added), dataset)
        evaluation = EvaluationSettings.model_validate(row.request["evaluation"])
        texts = _texts_of(found)
        self.admission.check_datasets(texts)
        for one in found:
            self.admission.check_tasks(evaluation.tasks, one.recipe)
        model = ModelReference.model_validate(row.request["model"])
        if model.repo_id is not None and row.source_commit is not None:
            model = model.model_copy(update={"revision": row.source_commit})
        has_token = row.request.get("hub_token") is not None
        looked = None if has_token else self.feasibility.look(model, None)
        shapes = None if looked is None else looked[0]
        return [_new_member(sweep, one, shapes, evaluation) for one in found]

    def _change(
        self, tenant: str, sweep_id: str, change: Callable[[SweepRepository], SweepRow]
    ) -> tuple[SweepRow, list[SweepMember]]:
        with self.database.write() as session:
            sweeps = SweepRepository(session, tenant)
            row = change(sweeps)
            found = row, sweeps.members(sweep_id)
        self.wake()
        return found

    def delete(self, tenant: str, sweep_id: str) -> None:
        """Forget a sweep that has ended; its members' jobs stay."""
        with self.database.write() as session:
            SweepRepository(session, tenant).remove(sweep_id)

    def events(self, tenant: str, sweep_id: str, *, after: int, limit: int) -> list[SweepEvent]:
        """Its history behind a number."""
        with self.database.read() as session:
            return SweepRepository(session, tenant).events(sweep_id, after=after, limit=limit)

    def glance(self, tenant: str, sweep_id: str) -> SweepGlance:
        """What streams look at."""
        with self.database.look() as connection:
            return sweep_glance(connection, tenant, sweep_id)

    def news(self, tenant: str, sweep_id: str, after: int) -> News | None:
        """What its event stream sends next."""
        try:
            seen = self.glance(tenant, sweep_id)
            rows = (
                self.events(tenant, sweep_id, after=after, limit=PAGE)
                if seen.last_event > after
                else []
            )
        except SweepNotFoundError:
            return None
        told = [
            StreamedEvent(one.seq, one.type, SweepEventView.model_validate(one).model_dump_json())
            for one in rows
        ]
        return News(told, seen.status in ENDED)


def _texts_of(found: Iterable[Member]) -> set[str]:
    """What members look at."""
    looking = [one.recipe for one in found if one.recipe.needs_calibration]
    return {name for recipe in looking for name in recipe.calibration.datasets}


def _new_member(
    sweep: Sweep, member: Member, shapes: ModelShapes | None, evaluation: EvaluationSettings
) -> NewMember:
    """A member, and what the model's headers tell of it."""
    known: dict[str, Any] = {
        "number": member.number, "fields": dict(member.fields), "recipe": member.recipe.document(),
        "recipe_sha256": member.recipe.sha256(), "status": WAITING,
    }  # fmt: skip
    if shapes is None:
        return NewMember(**known)
    try:
        require_suitable(member.recipe, shapes)
        found = estimate(member.recipe, shapes, evaluation)
    except RecipeError as error:
        refused = {"code": error.code, "message": str(error)}
        return NewMember(**known | {"status": SKIPPED, "stopped": "infeasible", "error": refused})
    known["estimate"] = found.document()
    if sweep.early_stop.skip_infeasible_estimates and is_too_large(
        sweep.objective, found.artifact_bytes.low, found.source_bytes
    ):
        known |= {"status": SKIPPED, "stopped": "infeasible"}
    return NewMember(**known)
