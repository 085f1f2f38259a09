"""What the service answers, as typed values; fields this version does not know stay in ``raw``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

TERMINAL_STATES = frozenset({"succeeded", "partially_succeeded", "failed", "cancelled", "expired"})


def _time(value: Any) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else None


def _names(value: Any) -> tuple[str, ...]:
    return tuple(value or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One answer of the service; ``raw`` is the JSON object as it came."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any] | None) -> Self:
        """The value in a JSON object; unknown fields are left alone, missing ones default."""
        body = body or {}
        known: dict[str, Any] = {"raw": body}
        for each in fields(cls):
            if each.name != "raw" and each.name in body:
                # By the habit of the API, what ends in _at is a time.
                read = each.metadata.get("read", _time if each.name.endswith("_at") else None)
                known[each.name] = read(body[each.name]) if read else body[each.name]
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Value):
    """A version by its id, and by name and number: ``digits@3``."""

    id: str = ""
    name: str = ""
    number: int = 0

    @property
    def reference(self) -> str:
        """What other calls take: ``digits@3``."""
        return f"{self.name}@{self.number}"


def _named(value: Any) -> Named | None:
    return Named.from_dict(value) if value else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts(Value):
    """Items of a job by how they ended; ``done`` sums the ended ones."""

    total: int = 0
    done: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Value):
    """How far a job is: a fraction 0…1, and steps of a unit for jobs without items."""

    fraction: float | None = None
    step: int | None = None
    steps: int | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Value):
    """What was submitted and how far it is."""

    id: str
    kind: str
    state: str
    priority: int = 0
    input: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    model_version: Named | None = field(default=None, metadata={"read": _named})
    dataset_version: Named | None = field(default=None, metadata={"read": _named})
    deadline_at: datetime | None = None
    max_failed: Mapping[str, Any] | None = None
    #: Id of the job whose images this one tries again.
    retry_of: str | None = None
    counts: Counts = field(default_factory=Counts, metadata={"read": Counts.from_dict})
    progress: Progress = field(default_factory=Progress, metadata={"read": Progress.from_dict})
    images_per_second: float | None = None
    eta_seconds: float | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    #: Why it was told to stop before its end: cancel, deadline or failures.
    stop_reason: str | None = None
    created_at: datetime | None = None
    queued_at: datetime | None = None
    running_at: datetime | None = None
    paused_at: datetime | None = None
    ended_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        """True once the state never changes again."""
        return self.state in TERMINAL_STATES

    @property
    def seconds(self) -> float | None:
        """Seconds from the first claim (or the submission) to the end."""
        begun = self.running_at or self.created_at
        if begun is None or self.ended_at is None:
            return None
        return (self.ended_at - begun).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload(Value):
    """A client's archive or weights file as the service has it."""

    id: str
    kind: str = "archive"
    state: str = ""
    filename: str = ""
    size_bytes: int | None = None
    sha256: str | None = None
    job_id: str | None = None
    image_count: int = 0
    failed_count: int = 0
    created_at: datetime | None = None
    stored_at: datetime | None = None
    ready_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """A file that was uploaded, and the ingest job of an archive."""

    upload: Upload
    job: Job | None


@dataclass(frozen=True, slots=True)
class Score:
    """One class of a prediction with its score."""

    name: str
    score: float


def _scores(value: Any) -> tuple[Score, ...] | None:
    if value is None:
        return None
    return tuple(Score(str(each["class"]), float(each["score"])) for each in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Value):
    """How one item ended: its prediction, best first, or its error."""

    ordinal: int
    custom_id: str = ""
    source: str = ""
    state: str = ""
    prediction: tuple[Score, ...] | None = field(default=None, metadata={"read": _scores})
    error: Mapping[str, Any] | None = None
    label: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Value):
    """One logged number of a job; ``value`` is None where it was not finite."""

    name: str
    step: int
    value: float | None = None
    recorded_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Value):
    """One recipe that a search tried; ``epochs`` hold what each showed of the validation split."""

    number: int
    state: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, Any]] = ()
    accuracy: float | None = None
    loss: float | None = None
    error: Mapping[str, Any] | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds from its begin to its end, those between two attempts too."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Value):
    """Something that happened to a job; ``data`` is the job's state and counts after it."""

    id: str
    type: str
    job_id: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None

    @property
    def is_last(self) -> bool:
        """True for the event that ends its job."""
        return self.type.removeprefix("job.") in TERMINAL_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(Value):
    """A file that a job made."""

    id: str
    name: str
    media_type: str = "application/octet-stream"
    size_bytes: int = 0
    sha256: str = ""
    job_id: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion(Value):
    """Frozen labelled images; ``counts`` is ``{split: {class: images}}``."""

    id: str
    name: str = ""
    number: int = 0
    content_sha256: str = ""
    classes: tuple[str, ...] = field(default=(), metadata={"read": _names})
    sample_count: int = 0
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    #: Sizes of the images, and which are the same; None where an earlier release froze it.
    facts: Mapping[str, Any] | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset(Value):
    """A name for labelled images."""

    id: str
    name: str
    version_count: int = 0
    latest_number: int = 0
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed(Value):
    """How fast a version was on one kind of device; None where it was too fast to measure."""

    device: str = ""
    #: Of one busy worker, reading and decoding included.
    images_per_second: float | None = None
    #: Of the network alone.
    forward_images_per_second: float | None = None
    images: int = 0


def _speeds(value: Any) -> tuple[Speed, ...]:
    return tuple(map(Speed.from_dict, value or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion(Value):
    """Immutable weights with their preprocessing, classes and lineage."""

    id: str
    model: str = ""
    number: int = 0
    state: str = ""
    arch: str = ""
    aliases: tuple[str, ...] = field(default=(), metadata={"read": _names})
    classes: tuple[str, ...] = field(default=(), metadata={"read": _names})
    preprocess: Mapping[str, Any] | None = None
    preprocess_sha256: str | None = None
    weights_sha256: str | None = None
    weights_bytes: int | None = None
    parameter_count: int | None = None
    #: Multiply-accumulate operations for one image.
    macs: int | None = None
    scores: Mapping[str, Any] | None = None
    speeds: tuple[Speed, ...] = field(default=(), metadata={"read": _speeds})
    calibration: Mapping[str, Any] | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    job_id: str | None = None
    created_at: datetime | None = None
    ready_at: datetime | None = None
    delete_asked_at: datetime | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Value):
    """A name that versions are registered under; ``aliases`` is ``{alias: version number}``."""

    id: str
    name: str
    aliases: Mapping[str, int] = field(default_factory=dict)
    version_count: int = 0
    latest_number: int = 0
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(Value):
    """Where an alias points; ``verdict`` is what its gate found when it was last moved."""

    model: str = ""
    alias: str = ""
    version: int = 0
    version_id: str = ""
    gate: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove(Value):
    """One move of an alias: ``moved``, ``promoted`` or ``rolled_back``."""

    id: str
    alias: str = ""
    kind: str = ""
    from_version: int | None = None
    to_version: int = 0
    verdict: Mapping[str, Any] | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Value):
    """How good a version was on the images of one split of a dataset version."""

    id: str
    dataset: str = ""
    split: str | None = None
    items: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    job_id: str = ""
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant(Value):
    """What another tenant may do with a model; ``answers`` is full, rounded or top1."""

    id: str
    model: str = ""
    tenant: str = ""
    rights: tuple[str, ...] = field(default=(), metadata={"read": _names})
    answers: str = ""
    #: Images in a day (UTC); None is any number.
    max_items_per_day: int | None = None
    items_today: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedModel(Value):
    """A model of another tenant that may be used: jobs name it ``model``, or ``model@alias``."""

    id: str
    model: str = ""
    rights: tuple[str, ...] = field(default=(), metadata={"read": _names})
    answers: str = ""
    max_items_per_day: int | None = None
    items_today: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    version_numbers: tuple[int, ...] = field(default=(), metadata={"read": tuple})
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Value):
    """How many images a key may have answered in a day (UTC); None is any number."""

    max_items_per_day: int | None = None
    items_today: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key(Value):
    """An API key without its secret; ``text`` is the whole key, shown once, when it is made."""

    id: str
    name: str = ""
    scopes: tuple[str, ...] = field(default=(), metadata={"read": _names})
    text: str | None = field(default=None, repr=False)
    #: The first key of its line, where it succeeds another one.
    line_id: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Value):
    """An address that is told of events; ``secret`` is shown once, when it is made or rotated."""

    id: str
    url: str = ""
    events: tuple[str, ...] = field(default=(), metadata={"read": _names})
    state: str = ""
    secret: str | None = field(default=None, repr=False)
    signed: bool = True
    previous_secret_ends_at: datetime | None = None
    disabled_reason: str | None = None
    first_failed_at: datetime | None = None
    created_at: datetime | None = None
    disabled_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery(Value):
    """One event on its way to one webhook; receivers see ``id`` as ``webhook-id``."""

    id: str
    webhook_id: str = ""
    job_id: str | None = None
    event_number: int | None = None
    event_type: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    attempts: int = 0
    last_status: int | None = None
    last_error: str | None = None
    last_tried_at: datetime | None = None
    next_try_at: datetime | None = None
    created_at: datetime | None = None
    delivered_at: datetime | None = None
    failed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry(Value):
    """One act in the audit log; ``seq`` and ``hash`` are None for a second, until it is chained."""

    id: str
    at: datetime | None = field(default=None, metadata={"read": _time})
    actor: str = ""
    action: str = ""
    outcome: str = ""
    target: str | None = None
    request_id: str | None = None
    client_address: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    seq: int | None = None
    hash: str | None = None
