"""The live list of sandboxes, and what a person does to one of them from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.core.paginator import Paginator
from django.db.models import F, Q, QuerySet, TextField
from django.db.models.functions import Cast
from django.http import HttpResponseBase
from django.utils import timezone
from django.views.decorators.http import require_GET

from accounts.models import Team
from frontend.pages import TeamRequest, render, team_page
from frontend.views.templates import visible_templates
from sandboxes.lifecycle import PAUSED_STATES, RUNNING_STATES, State
from sandboxes.models import Sandbox, SandboxMetric

PAGE_SIZE = 50
SAMPLE_MAX_AGE = timedelta(seconds=60)

STATE_CHOICES = [
    ("live", "Active"),
    ("running", "Running"),
    ("paused", "Paused"),
    ("ended", "Ended"),
    ("all", "All states"),
]
NOT_ENDED = frozenset(State) - {State.ENDED}
STATES_OF: dict[str, frozenset[State]] = {
    "live": NOT_ENDED,
    "running": RUNNING_STATES | {State.STARTING},
    "paused": PAUSED_STATES,
    "ended": frozenset({State.ENDED}),
    "all": frozenset(State),
}

# name in the URL: (label, column of the table, numeric)
SORTS: dict[str, tuple[str, str, bool]] = {
    "id": ("Sandbox", "public_id", False),
    "state": ("State", "state", False),
    "template": ("Template", "alias", False),
    "age": ("Age", "created_at", True),
    "left": ("Time left", "end_at", True),
    "cpu": ("CPU", "cpu_count", True),
    "memory": ("Memory", "memory_mb", True),
}
DEFAULT_SORT = "-age"  # newest first: see `order_by`
# A greater age is an earlier creation, so that column sorts the other way round.
REVERSED = {"age"}


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What the list shows, from the query string; anything odd falls back to the default."""

    q: str
    state: str
    template: str
    sort: str

    @classmethod
    def of(cls, query: Any) -> Filters:
        state = query.get("state", "live")
        sort = query.get("sort", "age")
        return cls(
            q=query.get("q", "").strip()[:200],
            state=state if state in STATES_OF else "live",
            template=query.get("template", "")[:64],
            sort=sort if sort.removeprefix("-") in SORTS else "age",
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.q or self.template or self.state != "live")

    def url_with(self, **changes: str) -> str:
        values = {"q": self.q, "state": self.state, "template": self.template, "sort": self.sort}
        values |= changes
        return "?" + urlencode({name: value for name, value in values.items() if value})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sandbox as the tables show it."""

    sandbox: Sandbox
    sample: SandboxMetric | None

    @property
    def is_live(self) -> bool:
        return self.sandbox.state != State.ENDED

    @property
    def is_running(self) -> bool:
        return self.sandbox.state in RUNNING_STATES

    @property
    def template_label(self) -> str:
        return self.sandbox.alias or self.sandbox.template.public_id


def rows_of(sandboxes: list[Sandbox]) -> list[Row]:
    """With the newest usage sample of each that runs, in one query."""
    running = [sandbox.pk for sandbox in sandboxes if sandbox.state in RUNNING_STATES]
    newest: dict[int, SandboxMetric] = {}
    if running:
        since = timezone.now() - SAMPLE_MAX_AGE
        samples = SandboxMetric.objects.filter(sandbox__in=running, at__gte=since).order_by("at")
        newest = {sample.sandbox_id: sample for sample in samples}
    return [Row(sandbox=sandbox, sample=newest.get(sandbox.pk)) for sandbox in sandboxes]


def matching(team: Team, filters: Filters) -> QuerySet[Sandbox]:
    found: QuerySet[Sandbox] = Sandbox.objects.filter(team=team, state__in=STATES_OF[filters.state])
    if filters.template:
        found = found.filter(template__public_id=filters.template)
    if filters.q:
        # Databases keep JSON with or without escapes of other alphabets; look for both spellings.
        encoded = json.dumps(filters.q)[1:-1]
        found = found.annotate(metadata_text=Cast("metadata", TextField())).filter(
            Q(public_id__icontains=filters.q)
            | Q(alias__icontains=filters.q)
            | Q(template__public_id=filters.q)
            | Q(metadata_text__icontains=filters.q)
            | Q(metadata_text__icontains=encoded)
        )
    return found


def ordered(sandboxes: QuerySet[Sandbox], sort: str) -> QuerySet[Sandbox]:
    name = sort.removeprefix("-")
    column = F(SORTS[name][1])
    is_descending = sort.startswith("-") != (name in REVERSED)
    # Age rises from the newest down, which is what people want first.
    order = column.desc(nulls_last=True) if is_descending else column.asc(nulls_last=True)
    return sandboxes.order_by(order, "-pk")


def columns_of(filters: Filters) -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = []
    for name, (label, _, numeric) in SORTS.items():
        is_sorted = filters.sort.removeprefix("-") == name
        is_descending = filters.sort.startswith("-")
        flipped = name if not is_sorted or is_descending else f"-{name}"
        columns.append(
            {
                "label": label,
                "sort": name,
                "numeric": numeric,
                "aria": ("descending" if is_descending else "ascending") if is_sorted else "none",
                "url": filters.url_with(sort=flipped),
            }
        )
    columns.append({"label": "Metadata", "sort": "", "numeric": False})
    return columns


@require_GET
@team_page(nav="sandboxes")
def sandbox_list(request: TeamRequest) -> HttpResponseBase:
    filters = Filters.of(request.GET)
    found = ordered(matching(request.team, filters), filters.sort).select_related("template")
    page = Paginator(found, PAGE_SIZE).get_page(request.GET.get("page"))
    context = {
        "page": page,
        "rows": rows_of(list(page.object_list)),
        "filters": filters,
        "is_filtered": filters.is_filtered,
        "columns": columns_of(filters),
        "state_choices": STATE_CHOICES,
        "template_choices": template_choices(request.team),
    }
    return render(request, "frontend/sandboxes.html", context, partial="frontend/_sandboxes.html")


def template_choices(team: Team) -> list[tuple[str, str]]:
    templates = visible_templates(team).prefetch_related("aliases").order_by("-created_at")[:200]
    choices = []
    for template in templates:
        names = [str(alias) for alias in template.aliases.all()]
        choices.append((template.public_id, names[0] if names else template.public_id))
    return sorted(choices, key=lambda choice: choice[1].lower())
