"""A folder on a disk or in object storage: what is written there is there whole or not at all.

Local files are written under a hidden name, forced to the disk and renamed. Objects are kept in a temporary file until they are whole. So a writer that fails leaves
what others have written as it is, and takes nothing away but what it made itself. Names are relative, with `/` between their parts.
"""

from __future__ import annotations

import contextlib
import copy
import mmap
import os
import pathlib
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.fs

from . import _address, _filesystems
from ._errors import StoreError


class Output(Protocol):
    """A file on its way."""

    def write(self, data: bytes | bytearray) -> None:
        """Appends bytes."""

    def commit(self) -> None:
        """Makes the file visible under its name."""

    def abort(self) -> None:
        """Leaves nothing behind. What others have under its name stays."""


class _LocalOutput:
    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Readers leave out what begins with a dot. Processes of several machines or containers may have one number.
        self._hidden = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
        self._file: BinaryIO = open(self._hidden, "wb")

    def write(self, data: bytes | bytearray) -> None:
        self._file.write(data)

    def commit(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._hidden, self._path)

    def abort(self) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._hidden.unlink()


class _RemoteOutput:
    """An object, kept in a temporary file until it is whole. Arrow completes an upload however its stream ends: one that began before all was there
    could end as a piece in the place of the whole object that another writer of the same has put there.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._file = tempfile.TemporaryFile(prefix="sae-")

    def write(self, data: bytes | bytearray) -> None:
        self._file.write(data)

    def commit(self) -> None:
        # In a thread of its own, which is waited for: Ctrl-C comes to the main thread alone, and must not come between these calls.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._upload).result()
        self._file.close()

    def _upload(self) -> None:
        self._file.flush()
        is_empty = self._file.tell() == 0
        whole = b"" if is_empty else mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        with self._fs.open_output_stream(self._path) as stream:
            stream.write(pa.py_buffer(whole))

    def abort(self) -> None:
        self._file.close()


class _Named:
    """An output whose errors say what they are about."""

    def __init__(self, output: Output, named: Callable[[], AbstractContextManager[None]]) -> None:
        self._output, self._named = output, named

    def write(self, data: bytes | bytearray) -> None:
        with self._named():
            self._output.write(data)

    def commit(self) -> None:
        with self._named():
            self._output.commit()

    def abort(self) -> None:
        with self._named():
            self._output.abort()


class Store:
    """A folder by its path or URL: `runs/my`, `file:///data`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

    Raises:
        ValueError: for what is no such place.
        StoreError: for one that Arrow cannot open.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        address = _address.parse(url)
        text = os.fspath(url)
        self.url = text.rstrip("/") or "/"
        self._local: pathlib.Path | None = None
        self._fs: Any = None
        if address.scheme:
            self._fs, self._root = _filesystems.of(address)
        else:
            self._local = pathlib.Path(address.path).absolute()

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Store) -> Store:
        """The same, or the folder that a path names."""
        return place if isinstance(place, Store) else cls(place)

    def below(self, folder: str) -> Store:
        """A folder in this one."""
        if not folder:
            return self
        inner = copy.copy(self)
        inner.url = self.url_of(folder)
        if self._local is not None:
            inner._local = self._local / folder
        else:
            inner._root = f"{self._root}/{folder}"
        return inner

    def url_of(self, name: str) -> str:
        """A file as it is called in messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def local(self, name: str) -> pathlib.Path | None:
        """The path of a file, where files have one."""
        return None if self._local is None else self._local / name

    def refuse_file(self) -> None:
        """Refuses a place on this machine where no folder can be.

        Raises:
            ValueError: naming the file that is in its way.
        """
        with self._named(""):
            above = next((path for path in (self._local, *self._local.parents) if path.exists()), None) if self._local else None
            if above is not None and not above.is_dir():
                raise ValueError(f"{self.url}: {above} is a file, and a folder is needed: name another")

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Errors that say where they happened."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.url_of(name)}: {error}") from error

    def list(self, folder: str = "") -> dict[str, int]:
        """Files below a folder of this one, by their names in this one, with their sizes; empty when there is no such folder."""
        found: dict[str, int] = {}
        with self._named(folder):
            if self._local is not None:
                for above, _, names in os.walk(self._local / folder):
                    for name in names:
                        path = pathlib.Path(above, name)
                        with contextlib.suppress(FileNotFoundError):
                            found[path.relative_to(self._local).as_posix()] = path.stat().st_size
                return found
            place = f"{self._root}/{folder}".rstrip("/")
            selector = pa.fs.FileSelector(place, recursive=True, allow_not_found=True)
            for info in self._fs.get_file_info(selector):
                if info.type == pa.fs.FileType.File:
                    found[info.path[len(self._root) + 1 :]] = info.size
        return found

    def size(self, name: str) -> int | None:
        """Bytes of a file; `None` when there is none."""
        with self._named(name):
            if self._local is not None:
                path = self._local / name
                return path.stat().st_size if path.is_file() else None
            info = self._fs.get_file_info(f"{self._root}/{name}")
            return int(info.size) if info.type == pa.fs.FileType.File else None

    def get(self, name: str, most: int) -> bytes:
        """A whole file of at most so many bytes.

        Raises:
            FileNotFoundError: when there is none.
            ValueError: when it is larger: nothing of that kind is.
        """
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(f"{self.url_of(name)} is missing")
        if size > most:
            raise ValueError(f"{self.url_of(name)} has {size} bytes, and no such file has more than {most}")
        return self.get_range(name, 0, size)

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes of a file, which has to have them."""
        with self._named(name):
            if self._local is not None:
                with open(self._local / name, "rb") as file:
                    file.seek(start)
                    data = file.read(end - start)
            else:
                with self._fs.open_input_file(f"{self._root}/{name}") as file:
                    data = bytes(file.read_at(end - start, start))
        if len(data) != end - start:
            raise ValueError(f"{self.url_of(name)} ends before byte {end}")
        return data

    def open(self, name: str) -> Output:
        """Begins a file."""
        output: Output
        with self._named(name):
            if self._local is not None:
                output = _LocalOutput(self._local / name)
            else:
                output = _RemoteOutput(self._fs, f"{self._root}/{name}")
        return _Named(output, lambda: self._named(name))

    def put(self, name: str, data: bytes) -> None:
        """Writes a whole file."""
        output = self.open(name)
        try:
            output.write(data)
            output.commit()
        except BaseException:
            output.abort()
            raise

    def put_new(self, name: str, data: bytes) -> None:
        """Writes a whole file where there is none, and leaves one that is there. On a disk one of several writers is the first; in object
        storage the last of those that write at the same moment wins.
        """
        if self._local is None:
            if self.size(name) is None:
                self.put(name, data)
            return
        beside = f"{name}.{secrets.token_hex(4)}"
        hidden = pathlib.PurePosixPath(beside).with_name("." + pathlib.PurePosixPath(beside).name).as_posix()
        self.put(hidden, data)
        try:
            with self._named(name), contextlib.suppress(FileExistsError):
                os.link(self._local / hidden, self._local / name)
        finally:
            self.delete(hidden)

    def delete(self, name: str) -> None:
        """Takes a file away; nothing happens when there is none."""
        with self._named(name), contextlib.suppress(FileNotFoundError):
            if self._local is not None:
                (self._local / name).unlink()
            else:
                self._fs.delete_file(f"{self._root}/{name}")
