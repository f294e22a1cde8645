"""What sandboxes start from."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.models import APIKey, Team, User
from config import ids


class TemplateKind(models.TextChoices):
    TEMPLATE = "template"
    SNAPSHOT = "snapshot"  # made from a sandbox; left out of template lists
    FORK = "fork"  # holds the image of forks while they live; in no list


class Template(models.Model):
    """A named line of builds. `team` is null for the platform's own templates."""

    public_id = models.CharField(
        max_length=32, unique=True, default=ids.new_template_id, editable=False
    )
    team = models.ForeignKey(
        Team, on_delete=models.CASCADE, null=True, blank=True, related_name="templates"
    )
    kind = models.CharField(max_length=16, choices=TemplateKind, default=TemplateKind.TEMPLATE)
    is_public = models.BooleanField(default=False)
    description = models.CharField(max_length=500, blank=True)
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)
    spawn_count = models.PositiveBigIntegerField(default=0)
    last_spawned_at = models.DateTimeField(null=True, blank=True)
    # Of a snapshot: the sandbox it was taken from, by public id, since that one may be gone.
    source_sandbox_id = models.CharField(max_length=32, blank=True, db_index=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["team", "kind", "created_at"], name="template_by_team")
        ]

    def __str__(self) -> str:
        return self.public_id


class BuildStatus(models.TextChoices):
    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


class TemplateBuild(models.Model):
    """One image of a template, and the resources and defaults of sandboxes started from it."""

    public_id = models.UUIDField(default=ids.new_uuid, unique=True, editable=False)
    template = models.ForeignKey(Template, on_delete=models.CASCADE, related_name="builds")
    status = models.CharField(max_length=16, choices=BuildStatus, default=BuildStatus.WAITING)
    error_message = models.TextField(blank=True)
    error_step = models.CharField(max_length=16, blank=True)  # "base", a number, "finalize"
    image = models.CharField(max_length=255, blank=True)  # reference the node starts
    image_id = models.CharField(max_length=255, blank=True)  # content id: equal means same image
    size_bytes = models.PositiveBigIntegerField(default=0)
    # Where the image lies when no registry carries it between nodes; empty means everywhere.
    node_id = models.CharField(max_length=64, blank=True)
    cpu_count = models.PositiveIntegerField(default=2)
    memory_mb = models.PositiveIntegerField(default=1024)
    disk_size_mb = models.PositiveIntegerField(default=10240)
    start_cmd = models.TextField(blank=True)
    ready_cmd = models.TextField(blank=True)
    default_user = models.CharField(max_length=64, default="user")
    workdir = models.CharField(max_length=4096, blank=True)
    env = models.JSONField(default=dict, blank=True)
    # Of an inherited start command, which runs where its own template ended; null: as above.
    start_user = models.CharField(max_length=64, blank=True)
    start_workdir = models.CharField(max_length=4096, null=True, blank=True)  # noqa: DJ001
    start_env = models.JSONField(null=True, blank=True)
    recipe = models.JSONField(null=True, blank=True)  # the start call's body, less credentials
    progress_at = models.DateTimeField(null=True, blank=True)  # when its node last spoke of it
    envd_version = models.CharField(max_length=32, default="0.6.13")
    pool_size = models.PositiveIntegerField(null=True, blank=True)  # null: the settings' default
    # Of a snapshot: sandboxes made from it boot from disk, without its processes.
    has_memory = models.BooleanField(default=False)
    created_by_key = models.ForeignKey(
        APIKey, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["template", "-created_at"], name="build_by_template")
        ]

    def __str__(self) -> str:
        return str(self.public_id)


class TemplateAlias(models.Model):
    """A name of a template: `namespace/alias`, or bare and global when the namespace is null."""

    template = models.ForeignKey(Template, on_delete=models.CASCADE, related_name="aliases")
    namespace = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001 null means global
    alias = models.CharField(max_length=128)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering: ClassVar = ["pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["namespace", "alias"], name="alias_once_per_namespace"),
            models.UniqueConstraint(
                fields=["alias"], condition=Q(namespace=None), name="alias_once_globally"
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["alias"], name="alias_lookup")]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.alias}" if self.namespace is not None else self.alias


class TemplateTag(models.Model):
    """One assignment of a tag to a build. The newest one counts; the older are its history."""

    template = models.ForeignKey(Template, on_delete=models.CASCADE, related_name="tags")
    tag = models.CharField(max_length=128)
    build = models.ForeignKey(TemplateBuild, on_delete=models.CASCADE, related_name="tags")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["template", "tag", "-id"], name="tag_lookup")]

    def __str__(self) -> str:
        return f"{self.template_id}:{self.tag} -> {self.build_id}"


class LogLevel(models.IntegerChoices):
    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3


class BuildLogEntry(models.Model):
    """One line of a build's log. `number` counts from 0 within the build."""

    build = models.ForeignKey(TemplateBuild, on_delete=models.CASCADE, related_name="log")
    number = models.PositiveIntegerField()
    at = models.DateTimeField()
    level = models.PositiveSmallIntegerField(choices=LogLevel, default=LogLevel.INFO)
    message = models.TextField()
    step = models.CharField(max_length=16, blank=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["build", "number"], name="log_line_once")
        ]

    def __str__(self) -> str:
        return f"{self.build_id}#{self.number}"


class FileArchive(models.Model):
    """An uploaded archive of a COPY step. The content lies in the uploads directory."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="archives")
    files_hash = models.CharField(max_length=64)  # opaque: the client's, over what it likes
    size_bytes = models.PositiveBigIntegerField()
    created_at = models.DateTimeField(default=timezone.now)
    used_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "files_hash"], name="archive_once_per_team")
        ]

    def __str__(self) -> str:
        return f"{self.team_id}/{self.files_hash}"
