"""A folder that is far away, reached through fsspec: what to try again, for how long, and what to tell the user."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import fsspec
import fsspec.asyn
import tenacity
import xxhash

_T = TypeVar("_T")

# One request of the stores that answer requests for a part of a file: also what memory a download takes.
PIECE = 16 * 2**20
_REQUESTS_AT_ONCE = 32
# The clients' own limits. Their own tries are off: they would hide an outage for minutes, and hold up a stop.
_CONNECT_S = 10
_SILENCE_S = 30
_LONGEST_PAUSE_S = 5

# Errors are told by the names of their classes, since those of clients that are not installed cannot be imported.
# Builtin, asyncio's and fsspec's, aiohttp's (http, s3, gs), botocore's (s3), requests' and urllib3's (others).
_PASSING = {
    "ConnectionError",
    "TimeoutError",
    "gaierror",
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ChunkedEncodingError",
}
_FINAL = {"ClientConnectorCertificateError", "SSLCertVerificationError"}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}
_PASSING_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout"}
_NO_CREDENTIALS = {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}

_S3_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws/credentials, on every node; "
    "AWS_ENDPOINT_URL for a store that is not Amazon's, FSSPEC_S3_ANON=true for a public bucket"
)
_HTTP_REMEDY = "put user and password into ~/.netrc on every node"


class Received(NamedTuple):
    """What a download brought."""

    bytes: int
    xxh3: str


class Remote:
    """Files in a folder of S3, of a web server, or of whatever else fsspec reads.

    An error that may pass (no connection, a connection that broke, a server that is busy or broken) is tried again,
    until nothing has come for `retry_s` seconds. Every other error is raised at once.

    Usable in forked children and by several threads.
    """

    def __init__(self, url: str, retry_s: float) -> None:
        scheme, _, rest = url.partition("://")
        self._scheme = scheme.lower()
        place, self._query = rest, ""
        if self._web:
            place, mark, query = rest.partition("?")
            self._query = mark + query
        host, slash, path = place.rstrip("/").partition("/")
        self._user, _, host = host.rpartition("@")
        self.address = f"{self._scheme}://{host}{slash}{path}"
        """Without password or token."""
        # Others than the web's (ftp, sftp) expect the user in the address.
        self._url = (
            self.address if self._web or not self._user else f"{self._scheme}://{self._user}@{host}{slash}{path}"
        )
        self._retry_s = retry_s
        # fsspec's clients live in a thread that a forked child does not have. What a child inherits is kept
        # untouched: closing it would wait for that thread.
        self._file_systems: dict[int, tuple[Any, str]] = {}
        self._lock_of: dict[int, threading.Lock] = {}
        self._silent = False

    def read(self, file: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: access is refused, or the address is no good.
            ConnectionError: nothing has come for `retry_s` seconds.
        """

        def attempt(heard: Callable[[], None]) -> bytes:
            fs, root = self._file_system()
            content = fs.cat_file(self._join(root, file))
            heard()
            return content

        return self._persist(file, attempt)

    def sizes(self, files: Sequence[str]) -> dict[str, int]:
        """The bytes of those of `files` that are there: by one listing, or one short request each from web servers.

        Raises:
            ValueError, ConnectionError: as `read`.
        """
        if not self._web:
            try:
                listed = self._persist("", self._list)
            except FileNotFoundError:
                return {}
            return {file: listed[file] for file in files if file in listed}
        found: dict[str, int] = {}
        for start in range(0, len(files), _REQUESTS_AT_ONCE):
            batch = files[start : start + _REQUESTS_AT_ONCE]

            def attempt(heard: Callable[[], None], batch: Sequence[str] = batch) -> dict[str, int]:
                return self._ask(batch, heard)

            found |= self._persist(batch[0], attempt)
        return found

    def download(self, file: str, size: int, target: int, patient: bool = True) -> Received:
        """Writes a file into the file descriptor `target`; goes on where a connection broke if the server can.

        Args:
            size: expected. Not more is written, though what more there is shows in the answer.
            patient: False tries once only, without a word.

        Raises:
            FileNotFoundError, ValueError, ConnectionError: as `read`.
            OSError: `target` cannot be written.
        """
        position, furthest, digest = 0, 0, xxhash.xxh3_64()

        def attempt(heard: Callable[[], None]) -> Received:
            nonlocal position, furthest, digest
            if 0 < size <= position:
                return Received(position, digest.hexdigest())
            file_there, start = self._open_at(file, position)
            if start != position:
                position, digest = 0, xxhash.xxh3_64()
            with file_there:
                while position <= size and (piece := file_there.read(PIECE)):
                    _write(target, piece[: size - position], position)
                    digest.update(piece)
                    position += len(piece)
                    if position > furthest:  # a server that always breaks at the same place is not progress
                        furthest = position
                        heard()
            return Received(position, digest.hexdigest())

        return self._persist(file, attempt, patient)

    @property
    def _web(self) -> bool:
        return self._scheme in ("http", "https")

    def _join(self, root: str, file: str) -> str:
        return f"{root}/{file}{self._query}"

    def _file_system(self) -> tuple[Any, str]:
        process = os.getpid()
        with self._lock_of.setdefault(process, threading.Lock()):
            if process not in self._file_systems:
                if self._file_systems:  # this is a forked child: fsspec's own thread and lock are the parent's
                    fsspec.asyn.reset_lock()
                self._file_systems[process] = self._connect()
            return self._file_systems[process]

    def _connect(self) -> tuple[Any, str]:
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            if self._web:
                import aiohttp

                user, _, password = self._user.partition(":")
                options["client_kwargs"] = {
                    "timeout": aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
                    "trust_env": True,  # HTTPS_PROXY, ~/.netrc
                    "auth": aiohttp.BasicAuth(user, password) if user else None,
                }
            elif self._scheme in ("s3", "s3a"):
                options["config_kwargs"] = {
                    "connect_timeout": _CONNECT_S,
                    "read_timeout": _SILENCE_S,
                    "retries": {"mode": "standard", "total_max_attempts": 1},
                }
            fs, root = fsspec.core.url_to_fs(self._url, **options)
        except ImportError as error:
            extra = " (pip install 'attvae[s3]')" if self._scheme in ("s3", "s3a") else ""
            raise ValueError(f"{self.address} needs a package that is not installed{extra}: {error}") from None
        except Exception as error:  # each client refuses a bad address in its own way
            raise ValueError(
                f"cannot use the address {self.address} ({self._reason(error)}): it is a folder of this machine, or "
                "s3://BUCKET/FOLDER, http(s)://HOST/FOLDER, or another address that fsspec knows"
            ) from None
        if self._scheme in ("s3", "s3a"):
            fs.retries = 1
        return fs, root

    def _open_at(self, file: str, position: int) -> tuple[Any, int]:
        """The file, open for reading, and where it starts: at `position`, or 0 where the server knows no parts."""
        fs, root = self._file_system()
        path = self._join(root, file)
        if self._web:
            headers = {"Accept-Encoding": "identity"}
            if position:
                headers["Range"] = f"bytes={position}-"
            # Without blocks it is a stream; with a size, whichever, it is not preceded by a HEAD request.
            opened = fs.open(path, block_size=0, size=1, headers=headers)
            return opened, position if opened.r.status == 206 else 0
        opened = fs.open(path, block_size=PIECE, cache_type="none")
        opened.seek(position)
        return opened, position

    def _list(self, heard: Callable[[], None]) -> dict[str, int]:
        fs, root = self._file_system()
        listed = fs.ls(root, detail=True)
        heard()
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in listed if entry["type"] == "file"}

    def _ask(self, files: Sequence[str], heard: Callable[[], None]) -> dict[str, int]:
        fs, root = self._file_system()
        paths = [self._join(root, file) for file in files]
        found: dict[str, int] = {}
        answers = fsspec.asyn.sync(
            fs.loop, fsspec.asyn._run_coros_in_chunks, [fs._info(path) for path in paths], return_exceptions=True
        )
        for file, answer in zip(files, answers, strict=True):
            if isinstance(answer, Exception):
                if not _is_missing(answer):
                    raise answer
            elif answer["size"] is not None:
                found[file] = answer["size"]
            else:
                raise ValueError(f"{self.address} does not tell the size of {file}: use a server that does")
        heard()
        return found

    def _persist(self, file: str, attempt: Callable[[Callable[[], None]], _T], patient: bool = True) -> _T:
        """Calls `attempt` until it succeeds, fails for good, or has not called its argument for `retry_s` seconds."""
        self._file_system()  # what is wrong with the address itself is said in its own words
        last = time.monotonic()

        def heard() -> None:
            nonlocal last
            last = time.monotonic()
            if self._silent:
                self._silent = False
                print(f"attvae: {self.address} answers again", file=sys.stderr, flush=True)

        def announce(state: tenacity.RetryCallState) -> None:
            if not self._silent:
                self._silent = True
                error = state.outcome.exception() if state.outcome else None
                print(
                    f"attvae: {self.address} does not answer ({self._reason(error)}): "
                    f"trying again for up to {self._retry_s:g} s",
                    file=sys.stderr,
                    flush=True,
                )

        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_passing),
            wait=tenacity.wait_exponential_jitter(initial=0.2, max=_LONGEST_PAUSE_S, jitter=0.5),
            stop=lambda state: not patient or time.monotonic() - last + state.upcoming_sleep > self._retry_s,
            before_sleep=announce,
            reraise=True,
        )
        try:
            return tries(attempt, heard)
        except Exception as error:
            raise self._explained(error, file) from None

    def _explained(self, error: Exception, file: str) -> Exception:
        what = f"{self.address}/{file}" if file else self.address
        reason = self._reason(error)
        remedy = _S3_REMEDY if self._scheme in ("s3", "s3a") else _HTTP_REMEDY if self._web else "check the credentials"
        if _is_passing(error):
            return ConnectionError(
                f"{what} has not answered for {self._retry_s:g} s ({reason}): run the same command again when it does"
            )
        if _code(error) == "NoSuchBucket":
            return ValueError(
                f"{self.address}: there is no such bucket ({reason}): check its name and AWS_ENDPOINT_URL"
            )
        if _is_missing(error):
            return FileNotFoundError(f"{self.address} has no {file}" if file else f"{self.address} does not exist")
        if _status(error) in (401, 403) or _names(error) & _NO_CREDENTIALS:
            return ValueError(f"{what}: access refused ({reason}): {remedy}")
        if isinstance(error, _LocalError):
            return error
        return ValueError(f"cannot read {what} ({type(error).__name__}: {reason})")

    def _reason(self, error: BaseException | None) -> str:
        """An error in a few words, without the secrets that addresses hold."""
        if error is None:
            return "no reason given"
        status, code = _status(error), _code(error)
        if status is not None:
            return f"HTTP {status}" + (f", {code}" if code and code != str(status) else "")
        text = re.sub(r"//[^/@\s]+@", "//", str(error) or type(error).__name__)
        return re.sub(r"\?[^\s'\")]*", "", text).strip()


def _write(target: int, content: bytes, position: int) -> None:
    rest = memoryview(content)
    while rest:
        try:
            written = os.pwrite(target, rest, position)
        except OSError as error:
            raise _LocalError(error.errno, error.strerror) from None
        rest = rest[written:]
        position += written


class _LocalError(OSError):
    """This machine's disk failed, not the network."""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: clients translate errors, each in its own way."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cause in _chain(error) for cls in type(cause).__mro__}


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error; None where there was no complete answer."""
    for cause in _chain(error):
        if {cls.__name__ for cls in type(cause).__mro__} & _PASSING:  # what lies behind it is about the broken answer
            return None
        response = getattr(cause, "response", None)  # botocore's
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for attribute in ("status", "code", "status_code"):  # aiohttp's, gcsfs's, azure's
            if isinstance(status := getattr(cause, attribute, None), int):
                return status
    return None


def _code(error: BaseException) -> str | None:
    """S3's own name of an error."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
    return None


def _is_passing(error: BaseException) -> bool:
    names = _names(error)
    if isinstance(error, _LocalError) or names & _FINAL:
        return False
    if (status := _status(error)) is not None:
        return status in _PASSING_STATUS or _code(error) in _PASSING_CODES
    return bool(names & _PASSING)


def _is_missing(error: BaseException) -> bool:
    status = _status(error)
    return status in (404, 410) or (status is None and isinstance(error, FileNotFoundError) and not _is_passing(error))
