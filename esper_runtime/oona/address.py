"""Where the bus is and how one gets in: passed on as a file that only its owner may read."""

import os
import ssl
import tempfile
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator

from esper_runtime.contracts import ContractModel, InputError
from esper_runtime.oona.nkeys import Credentials

BUS_VARIABLE = "ESPER_BUS"
"""Environment variable that names the bus: the path of an address file, or a URL."""
LIBRARY_VARIABLE = "ESPER_LIBRARY"
"""Environment variable that holds the path of the file with a training's address on the library's bus."""

_SCHEMES = ("nats", "tls", "ws", "wss")


class BusAddress(ContractModel):
    """A NATS server and at most one way to authenticate: token, user and password, or credentials."""

    url: str = Field(description="nats://HOST:PORT, or tls://, ws://, wss://.")
    token: str | None = Field(default=None, repr=False)
    user: str | None = None
    password: str | None = Field(default=None, repr=False)
    credentials: str | None = Field(default=None, description="Path of a .creds file (JWT and key).")
    credentials_text: str | None = Field(default=None, repr=False, description="What such a file holds.")
    tls_ca: str | None = Field(default=None, description="Path of the authority's certificate (PEM).")
    tls_cert: str | None = Field(default=None, description="Path of the client's certificate (PEM).")
    tls_key: str | None = Field(default=None, description="Path of the client's key (PEM).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"url {self.url!r}: {error}") from error
        if parts.scheme not in _SCHEMES or not host:
            raise ValueError(
                f"url {self.url!r} must be like nats://HOST:4222; schemes: {', '.join(_SCHEMES)}"
            )
        if parts.username or parts.password:
            raise ValueError("the url must not carry a user or password; give them as user and password")
        ways = [
            given is not None for given in (self.token, self.user, self.credentials, self.credentials_text)
        ]
        if sum(ways) > 1:
            raise ValueError("give one of token, user with password, or credentials, not several")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together; give both or neither")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tlsCert and tlsKey belong together; give both or neither")
        return self

    def store(self, path: Path) -> None:
        """Write the address as JSON that only its owner may read (mode 0600), replacing the file at once.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")
            os.replace(name, path)
        except OSError as error:
            raise InputError(f"{path}: the bus address cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `store` wrote, or what a person wrote in its form.

        Raises:
            InputError: the file is missing, cannot be read, is open to others, or makes no sense.
        """
        try:
            mode = path.stat().st_mode
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: the bus address cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: the bus address is not a text file") from error
        try:
            address = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "file"
            raise InputError(f"{path}: not a bus address: {place}: {first['msg']}") from error
        if (address.token or address.password or address.credentials_text) and mode & 0o077:
            raise InputError(f"{path}: holds a secret but others may read it; run: chmod 600 {path}")
        return address

    @classmethod
    def named(cls, text: str, where: str) -> Self:
        """The bus that a person names: a URL, or a file with its address.

        Args:
            text: what was given.
            where: it was given, for messages.

        Raises:
            InputError: it is neither.
        """
        if "://" not in text:
            return cls.load(Path(text))
        try:
            return cls(url=text)
        except ValidationError as error:
            raise InputError(f"{where}: {error.errors(include_input=False)[0]['msg']}") from error

    @classmethod
    def from_environment(cls) -> Self | None:
        """The bus that ``ESPER_BUS`` names; None where it is not set.

        Raises:
            InputError: as `named`.
        """
        text = os.environ.get(BUS_VARIABLE)
        return cls.named(text, BUS_VARIABLE) if text else None

    def connect_options(self) -> dict[str, Any]:
        """Keyword arguments for ``nats.connect``.

        Raises:
            InputError: a certificate, key or credentials file cannot be used.
        """
        options: dict[str, Any] = {"servers": [self.url]}
        if self.token is not None:
            options["token"] = self.token
        if self.user is not None:
            options |= {"user": self.user, "password": self.password}
        if (mine := self.read_credentials()) is not None:
            options |= {"user_jwt_cb": mine.token.encode, "signature_cb": mine.sign_nonce}
        if self.tls_ca is not None or self.tls_cert is not None or self.url.startswith(("tls:", "wss:")):
            options["tls"] = self._tls()
        return options

    def read_credentials(self) -> Credentials | None:
        """The user that the credentials name; None where there are none.

        Raises:
            InputError: the file cannot be used.
        """
        if self.credentials_text is not None:
            return Credentials.parse(self.credentials_text)
        if self.credentials is None:
            return None
        try:
            return Credentials.parse(Path(self.credentials).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"credentials {self.credentials!r}: there is no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"credentials {self.credentials!r}: cannot be read ({error})") from error
        except InputError as error:
            raise InputError(f"credentials {self.credentials!r}: {error}") from None

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:  # ssl.SSLError is one
            files = [name for name in (self.tls_ca, self.tls_cert, self.tls_key) if name]
            raise InputError(f"TLS files {', '.join(files)} cannot be used: {error}") from error
        return context
