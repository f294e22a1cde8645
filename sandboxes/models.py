"""Sandboxes, the nodes that run them, and what is known of their lives."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from django.db import connections, models
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.utils import timezone

from accounts.models import APIKey, Team, User
from config import ids
from sandboxes.lifecycle import ACTIVE, LISTED, PAUSED_STATES, RUNNING_STATES, EndReason, State
from templates_app.models import Template, TemplateBuild


class Node(models.Model):
    """A machine that runs sandboxes, as its last heartbeat described it."""

    node_id = models.CharField(max_length=64, unique=True)
    api_url = models.CharField(max_length=255)
    gateway_url = models.CharField(max_length=255, blank=True)
    version = models.CharField(max_length=64, blank=True)
    api_version = models.PositiveIntegerField(default=1)
    agent_started_at = models.DateTimeField(null=True, blank=True)
    registered_at = models.DateTimeField(default=timezone.now)
    last_heartbeat_at = models.DateTimeField(null=True, blank=True)
    status_changed_at = models.DateTimeField(default=timezone.now)
    is_draining = models.BooleanField(default=False)  # asked for here or by the node itself
    drain_requested = models.BooleanField(default=False)  # asked for here
    is_standby = models.BooleanField(default=False)
    is_lost = models.BooleanField(default=False)
    cpu_count = models.PositiveIntegerField(default=0)
    memory_mb = models.PositiveIntegerField(default=0)
    memory_available_mb = models.PositiveIntegerField(default=0)
    disk_total_mb = models.PositiveIntegerField(default=0)
    disk_available_mb = models.PositiveIntegerField(default=0)
    max_sandboxes = models.PositiveIntegerField(default=0)
    docker_version = models.CharField(max_length=64, blank=True)
    storage_driver = models.CharField(max_length=64, blank=True)
    cgroup_version = models.PositiveIntegerField(default=0)
    warm = models.JSONField(default=dict, blank=True)  # build id -> ready warm containers
    last_event_seq = models.PositiveBigIntegerField(default=0)
    create_successes = models.PositiveBigIntegerField(default=0)
    create_fails = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return self.node_id


class SandboxQuerySet(models.QuerySet["Sandbox"]):
    def present(self, now: datetime) -> SandboxQuerySet:
        """What the API shows. One past its deadline is gone, though its node has not said so."""
        return self.filter(state__in=LISTED).exclude(
            state__in=RUNNING_STATES, on_timeout=Sandbox.OnTimeout.KILL, end_at__lte=now
        )

    def shown_running(self, now: datetime) -> SandboxQuerySet:
        """Running or snapshotting, and before the deadline: past it, an auto-pause is under way."""
        return self.filter(state__in=RUNNING_STATES, end_at__gt=now)

    def shown_paused(self, now: datetime) -> SandboxQuerySet:
        return self.filter(
            Q(state__in=PAUSED_STATES)
            | Q(state__in=RUNNING_STATES, on_timeout=Sandbox.OnTimeout.PAUSE, end_at__lte=now)
        )

    def active(self) -> SandboxQuerySet:
        """What takes a concurrency slot: starting and running ones, not paused ones."""
        return self.filter(state__in=ACTIVE)

    def overdue(self, now: datetime) -> SandboxQuerySet:
        return self.filter(state__in=RUNNING_STATES, end_at__lte=now)

    def with_metadata(self, pairs: dict[str, str]) -> SandboxQuerySet:
        """Those whose metadata has all the pairs, exactly. Any text is a fair key."""
        if not pairs:
            return self
        if connections[self.db].vendor == "postgresql":
            return self.filter(metadata__contains=pairs)
        found = self
        for key, value in pairs.items():
            # SQLite has no containment for JSON, and Django's key lookups read "1" as an index.
            holds = RawSQL(
                "EXISTS(SELECT 1 FROM json_each(sandboxes_sandbox.metadata) AS pair"
                " WHERE pair.key = %s AND pair.value = %s)",
                (key, value),
                output_field=models.BooleanField(),
            )
            found = found.alias(_holds=holds).filter(_holds=True)
        return found


class Sandbox(models.Model):
    """One sandbox from its request to its end; the row stays afterwards and says why it ended."""

    class OnTimeout(models.TextChoices):
        KILL = "kill"
        PAUSE = "pause"

    public_id = models.CharField(
        max_length=32, unique=True, default=ids.new_sandbox_id, editable=False
    )
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="sandboxes")
    template = models.ForeignKey(Template, on_delete=models.PROTECT, related_name="sandboxes")
    build = models.ForeignKey(TemplateBuild, on_delete=models.PROTECT, related_name="sandboxes")
    node = models.ForeignKey(
        Node, on_delete=models.PROTECT, null=True, blank=True, related_name="sandboxes"
    )
    created_by_key = models.ForeignKey(
        APIKey, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_by_user = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    alias = models.CharField(max_length=128, blank=True)  # the template's first, at creation

    state = models.CharField(max_length=16, choices=State, default=State.STARTING)
    state_changed_at = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)  # start of the current or last run
    end_at = models.DateTimeField(null=True, blank=True)  # deadline; the pause time once paused
    paused_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    end_reason = models.CharField(max_length=32, choices=EndReason, blank=True)
    end_detail = models.CharField(max_length=500, blank=True)
    was_warm = models.BooleanField(null=True)  # claimed from the pool, or started cold

    cpu_count = models.PositiveIntegerField()
    memory_mb = models.PositiveIntegerField()
    disk_size_mb = models.PositiveIntegerField()
    envd_version = models.CharField(max_length=32)

    timeout_seconds = models.PositiveIntegerField()  # as asked for at creation
    max_length_seconds = models.PositiveIntegerField(default=86400)
    on_timeout = models.CharField(max_length=8, choices=OnTimeout, default=OnTimeout.KILL)
    auto_pause_memory = models.BooleanField(default=True)
    auto_resume = models.BooleanField(default=False)
    keeps_memory = models.BooleanField(default=True)  # of the last pause: processes are kept

    is_secure = models.BooleanField(default=True)
    allow_internet_access = models.BooleanField(null=True)  # null: not said
    network = models.JSONField(null=True, blank=True)  # as given, checked; null: none given
    metadata = models.JSONField(default=dict, blank=True)
    has_metadata = models.BooleanField(default=False)  # the caller gave one, perhaps an empty one
    env_vars = models.JSONField(default=dict, blank=True)

    objects: ClassVar[Any] = SandboxQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["team", "state", "-started_at"], name="sandbox_by_team_state"),
            models.Index(fields=["node", "state"], name="sandbox_by_node_state"),
            models.Index(fields=["state", "end_at"], name="sandbox_by_deadline"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=~Q(state=State.ENDED) | (Q(ended_at__isnull=False) & ~Q(end_reason="")),
                name="sandbox_ended_has_reason",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=sorted(LISTED)) | Q(started_at__isnull=False),
                name="sandbox_listed_has_start",
            ),
        ]

    def __str__(self) -> str:
        return self.public_id

    @property
    def lifecycle_state(self) -> State:
        return State(self.state)

    def shown_state(self, now: datetime) -> str:
        """What the API calls its state: running or paused."""
        if self.state in PAUSED_STATES or (
            self.state in RUNNING_STATES
            and self.on_timeout == self.OnTimeout.PAUSE
            and self.end_at is not None
            and self.end_at <= now
        ):
            return "paused"
        return "running"

    @property
    def is_live(self) -> bool:
        """Not ended, nor about to be."""
        return self.state not in {State.KILLING, State.ENDED}

    @property
    def allows_public_traffic(self) -> bool:
        return (self.network or {}).get("allowPublicTraffic") is not False


class SandboxEvent(models.Model):
    """Something that happened to a sandbox, told by its node or by this control plane."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    kind = models.CharField(max_length=32)  # nodeagent.wire.EventKind, or "created"
    # Of a node's event, its sequence number there: the same one twice is the same event.
    node = models.ForeignKey(Node, on_delete=models.CASCADE, null=True, related_name="+")
    seq = models.PositiveBigIntegerField(null=True)
    level = models.CharField(max_length=8, default="info")
    message = models.TextField(blank=True)
    data = models.JSONField(default=dict, blank=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["sandbox", "at"], name="event_by_sandbox")]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["node", "seq"], name="event_once_per_node_seq")
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.sandbox_id} at {self.at:%F %T}"


class SandboxMetric(models.Model):
    """Usage of one sandbox at one instant."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="metrics")
    at = models.DateTimeField()
    cpu_count = models.PositiveIntegerField()
    cpu_used_pct = models.FloatField()
    mem_used = models.PositiveBigIntegerField()  # bytes, as all below
    mem_total = models.PositiveBigIntegerField()
    mem_cache = models.PositiveBigIntegerField()
    disk_used = models.PositiveBigIntegerField()
    disk_total = models.PositiveBigIntegerField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["sandbox", "at"], name="metric_once_per_instant")
        ]
        indexes: ClassVar = [models.Index(fields=["at"], name="metric_by_time")]

    def __str__(self) -> str:
        return f"{self.sandbox_id} at {self.at:%F %T}"


class IdempotencyRecord(models.Model):
    """The outcome of a create that carried an Idempotency-Key, for replays of the same request."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    request_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now)
    response = models.JSONField(null=True, blank=True)  # null while the first request runs

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "key"], name="idempotency_key_once_per_team")
        ]

    def __str__(self) -> str:
        return f"{self.team_id}:{self.key}"
