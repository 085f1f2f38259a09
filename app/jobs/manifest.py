"""Manifests: an object that lists items, one a line, as JSONL or CSV."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidInputError
from app.jobs.items import JobItem
from app.locations import Location, parse_location
from app.storage.s3 import ObjectStore
from app.storage.streams import ObjectStream
from app.uploads.csv_rows import CsvRows

#: Longest line, in characters.
MAX_LINE_CHARS = 1024 * 1024
#: Largest metadata of one item; a chunk holds those of up to 4096.
MAX_METADATA_BYTES = 8 * 1024
#: A NUL as JSON text writes it, the backslash not itself escaped.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_COLUMNS = ("key", "offset", "length", "custom_id", "label", "metadata")
_KNOWN = frozenset(_COLUMNS)
_MAX_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ManifestLine:
    """One line: its item, or what is wrong with it. Lines count from 1, a CSV's header too."""

    line: int
    item: JobItem | None
    fault: str | None = None


def read_manifest(
    store: ObjectStore, location: Location, *, default_bucket: str
) -> Iterator[ManifestLine]:
    """The lines of a manifest, read as a stream: memory does not grow with its length.

    Fields: ``key`` (a key of ``default_bucket``, or ``s3://bucket/key``), and optionally
    ``offset`` with ``length`` in bytes, ``custom_id`` (default: the location), ``label`` and
    ``metadata`` (an object; in CSV as JSON). The format is told by the name (``.csv``,
    ``.jsonl``, ``.ndjson``), else by the first character.

    Raises:
        ObjectMissingError: there is no such object.
        StorageError: it could not be read.
    """
    stream = store.open(location.bucket, location.key)
    try:
        # utf-8-sig: spreadsheets begin their CSV with a byte order mark.
        text = io.TextIOWrapper(
            io.BufferedReader(_RawStream(stream), 256 * 1024),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
        )
        if _is_csv(location.key, text):
            yield from _read_csv(text, default_bucket)
        else:
            yield from _read_jsonl(text, default_bucket)
    finally:
        stream.close()


def _is_csv(key: str, text: io.TextIOWrapper) -> bool:
    name = key.lower()
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return False
    if name.endswith(".csv"):
        return True
    buffered = text.buffer
    assert isinstance(buffered, io.BufferedReader)
    return not buffered.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _read_jsonl(text: io.TextIOWrapper, bucket: str) -> Iterator[ManifestLine]:
    number = 0
    while line := text.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARS:
            while line and not line.endswith(("\n", "\r")):
                line = text.readline(MAX_LINE_CHARS)
            yield ManifestLine(number, None, f"longer than {MAX_LINE_CHARS} characters")
        elif line.strip():
            try:
                body = _DECODER.decode(line)
            except _RepeatedError as error:
                yield ManifestLine(number, None, str(error))
                continue
            except (ValueError, RecursionError):
                yield ManifestLine(number, None, "not a JSON object")
                continue
            yield _line(number, body, bucket)


def _read_csv(text: io.TextIOWrapper, bucket: str) -> Iterator[ManifestLine]:
    header: list[str] | None = None
    for number, cells in CsvRows(text, longest=MAX_LINE_CHARS, strict=True):
        if isinstance(cells, Exception):
            yield ManifestLine(number, None, f"not readable as CSV: {cells}")
            continue
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if "key" not in header:
                yield ManifestLine(number, None, "the header of a CSV manifest needs a column key")
                return
            repeated = [name for name in _COLUMNS if header.count(name) > 1]
            if repeated:
                yield ManifestLine(number, None, f"the header names {repeated[0]} twice")
                return
            continue
        if len(cells) != len(header):
            fault = f"{len(cells)} cells, but the header has {len(header)}"
            yield ManifestLine(number, None, fault)
            continue
        named = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        yield _csv_line(number, named, bucket)


def _csv_line(number: int, cells: dict[str, str], bucket: str) -> ManifestLine:
    body: dict[str, Any] = {name: cells[name] for name in _COLUMNS if name in cells}
    for name in ("offset", "length"):
        if name in body:
            if not (body[name].isascii() and body[name].isdigit()):
                return ManifestLine(
                    number, None, f"{name} {body[name][:50]!r} is not a whole number"
                )
            body[name] = int(body[name][:20])
    if "metadata" in body:
        try:
            body["metadata"] = _DECODER.decode(body["metadata"])
        except (ValueError, RecursionError):
            return ManifestLine(number, None, "metadata is not a JSON object")
    return _line(number, body, bucket)


def _line(number: int, body: Any, bucket: str) -> ManifestLine:
    try:
        return ManifestLine(number, _item(body, bucket))
    except InvalidInputError as error:
        return ManifestLine(number, None, error.detail)


def _item(body: Any, bucket: str) -> JobItem:
    if not isinstance(body, dict):
        raise InvalidInputError("not a JSON object")
    if not body.keys() <= _KNOWN:
        unknown = sorted(body.keys() - _KNOWN)
        raise InvalidInputError(
            f"unknown field {unknown[0][:50]!r}; known are {', '.join(_COLUMNS)}"
        )
    key = _text(body, "key")
    if not key:
        raise InvalidInputError("key is missing")
    location = parse_location(
        key if key.startswith("s3://") else f"s3://{bucket}/{key}", require_key=True
    )
    offset, length = _size(body, "offset"), _size(body, "length")
    if (offset is None) != (length is None):
        raise InvalidInputError("offset and length go together")
    if length == 0:
        raise InvalidInputError("length must be above 0")
    if offset is not None and length is not None and offset + length > _MAX_BYTES:
        raise InvalidInputError("offset and length together are no place in an object")
    source = str(location) if offset is None else f"{location}#{offset}+{length}"
    return JobItem(
        custom_id=_text(body, "custom_id") or source,
        bucket=location.bucket,
        key=location.key,
        source=source,
        offset=offset,
        length=length,
        label=_text(body, "label"),
        metadata=_metadata(body),
    )


def _metadata(body: dict[str, Any]) -> dict[str, Any] | None:
    """What PostgreSQL can keep as it is: no NUL, no half characters, no infinite numbers."""
    metadata = body.get("metadata")
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise InvalidInputError("metadata is not a JSON object")
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (ValueError, RecursionError):
        raise InvalidInputError("metadata holds what JSON cannot") from None
    if size > MAX_METADATA_BYTES:
        raise InvalidInputError(f"metadata has {size} bytes, at most {MAX_METADATA_BYTES} fit")
    if _ESCAPED_NUL.search(text):
        raise InvalidInputError("metadata holds a NUL character")
    return metadata


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidInputError(f"{name} is not a string")
    if len(value) > 1024 or "\x00" in value:
        raise InvalidInputError(f"{name} is longer than 1024 characters or holds a NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{name} is not valid UTF-8") from None
    return value


def _size(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_BYTES:
        raise InvalidInputError(f"{name} is not a whole number of bytes")
    return value


class _RepeatedError(ValueError):
    """An object names one field twice, and readers would not agree on which value holds."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RepeatedError(f"the field {name[:50]!r} stands there twice")
            seen.add(name)
    return body


#: Made once: ``json.loads`` would make one for every line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)


class _RawStream(io.RawIOBase):
    """An object's body as the raw file that the standard library's readers sit on."""

    def __init__(self, stream: ObjectStream) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
