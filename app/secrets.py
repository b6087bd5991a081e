"""Secrets that must be readable again later (webhook keys, clients' Hub tokens), encrypted at rest."""

from dataclasses import dataclass

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from app.domain.errors import SecretUnreadableError


@dataclass(frozen=True, slots=True)
class Sealer:
    """Encrypts with the first of some Fernet keys and decrypts with any of them, so that keys can be changed."""

    keys: MultiFernet

    def seal(self, secret: str) -> str:
        """Encrypt."""
        return self.keys.encrypt(secret.encode()).decode("ascii")

    def open(self, sealed: str) -> str:
        """Decrypt.

        Raises:
            SecretUnreadableError: none of the keys sealed it.
        """
        try:
            return self.keys.decrypt(sealed.encode("ascii")).decode()
        except InvalidToken:
            raise SecretUnreadableError from None


def make_sealer(keys: SecretStr | None) -> Sealer | None:
    """A sealer from comma-separated Fernet keys; None without any.

    Raises:
        ValueError: one is no Fernet key.
    """
    texts = [] if keys is None else [text for text in keys.get_secret_value().split(",") if text]
    if not texts:
        return None
    try:
        return Sealer(MultiFernet([Fernet(text.strip()) for text in texts]))
    except ValueError:
        raise ValueError(
            "SPQ_SECRET_KEYS: each key must be 32 bytes in url-safe base64; `spq keys seal` makes one"
        ) from None
