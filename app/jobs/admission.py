"""What a request names, looked at before anything is accepted: models, texts, tasks, tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import SecretStr

from app.domain.errors import TokensDisabledError
from app.domain.naming_errors import ModelNotAllowedError, UnknownDatasetError, UnknownTaskError
from app.jobs.requests import ModelReference
from app.secrets import Sealer
from app.settings import ApiSettings
from spq_core.data.tasks import find_task
from spq_core.data.texts import is_known
from spq_core.errors import DatasetError
from spq_core.hub.tasks import is_on_hub, on_hub
from spq_core.recipe.document import Recipe
from spq_core.recipe.suitable import require_gated_tasks


@dataclass(frozen=True, slots=True)
class Admission:
    """What this service has and allows."""

    settings: ApiSettings
    sealer: Sealer | None

    @property
    def _data_folders(self) -> list[Path]:
        return [] if self.settings.data_dir is None else [self.settings.data_dir]

    def check_local_model(self, model: ModelReference) -> None:
        """Refuse a local model that is not in an allowed folder.

        Raises:
            ModelNotAllowedError: it is not.
        """
        if model.path is not None and self.settings.local_model(model.path, model.reading) is None:
            raise ModelNotAllowedError(model.place)

    def check_datasets(self, names: Iterable[str]) -> None:
        """Refuse texts that are neither known nor in the data folder.

        Raises:
            UnknownDatasetError: naming the first.
        """
        for name in sorted(set(names)):
            if not is_known(name, self.settings.data_dir):
                raise UnknownDatasetError(name)

    def check_tasks(self, names: Sequence[str], recipe: Recipe) -> None:
        """Refuse tasks without questions, and gates on tasks that are not asked for.

        Raises:
            UnknownTaskError: a task's questions are neither in the data folder nor known to be on the Hub.
            RecipeError: a gate is on a figure that there will not be.
        """
        self.require_known_tasks(names)
        require_gated_tasks(recipe, names)

    def require_known_tasks(self, names: Sequence[str]) -> None:
        """Refuse tasks without questions.

        Raises:
            UnknownTaskError: a task's questions are neither in the data folder nor known to be on the Hub.
        """
        for name in names:
            if is_on_hub(name):
                continue
            try:
                find_task(name, self._data_folders)
            except DatasetError as error:
                near = ", ".join(get_close_matches(name, on_hub()))
                meant = f"; did you mean {near}?" if near else ""
                raise UnknownTaskError(f"{error}{meant}") from None

    def sealed(self, token: SecretStr | None) -> str | None:
        """A client's Hub token as it is kept.

        Raises:
            TokensDisabledError: it could not be.
        """
        if token is None:
            return None
        if self.sealer is None:
            raise TokensDisabledError
        return self.sealer.seal(token.get_secret_value())
