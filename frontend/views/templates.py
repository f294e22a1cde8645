"""Templates of the team and of the platform, and their builds."""

from __future__ import annotations

from dataclasses import dataclass

from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.http import HttpResponseBase
from django.views.decorators.http import require_GET

from accounts.models import Team
from config.errors import NotFound
from frontend.pages import TeamRequest, render, team_page
from sandboxes.lifecycle import ACTIVE
from sandboxes.models import Sandbox
from templates_app.models import Template, TemplateBuild, TemplateTag

PAGE_SIZE = 50
SHOWN_BUILDS = 50


@dataclass(frozen=True, kw_only=True)
class TemplateRow:
    template: Template
    names: list[str]
    build: TemplateBuild | None

    @property
    def label(self) -> str:
        return self.names[0] if self.names else self.template.public_id


def visible_templates(team: Team) -> QuerySet[Template]:
    """The team's own and the platform's."""
    return Template.objects.filter(
        Q(team=team) | Q(team=None, is_public=True), deleted_at=None, kind="template"
    )


def access_template_page(team: Team, template_id: str) -> Template:
    template = visible_templates(team).filter(public_id=template_id[:32]).first()
    if template is None:
        raise NotFound("There is no such template, or you may not see it.")
    return template


def rows_of(templates: list[Template]) -> list[TemplateRow]:
    newest = (
        TemplateBuild.objects.filter(template=OuterRef("template"))
        .order_by("-created_at", "-pk")
        .values("pk")[:1]
    )
    builds = TemplateBuild.objects.filter(
        template__in=templates, pk=Subquery(newest)
    ).select_related("template")
    by_template = {build.template_id: build for build in builds}
    return [
        TemplateRow(
            template=template,
            names=[str(alias) for alias in template.aliases.all()],
            build=by_template.get(template.pk),
        )
        for template in templates
    ]


@require_GET
@team_page(nav="templates")
def template_list(request: TeamRequest) -> HttpResponseBase:
    q = request.GET.get("q", "").strip()[:100]
    found = visible_templates(request.team)
    if q:
        found = found.filter(
            Q(public_id__istartswith=q) | Q(aliases__alias__icontains=q)
        ).distinct()
    found = found.prefetch_related("aliases").order_by("-updated_at", "-pk")
    page = Paginator(found, PAGE_SIZE).get_page(request.GET.get("page"))
    context = {"page": page, "rows": rows_of(list(page.object_list)), "q": q}
    return render(request, "frontend/templates.html", context, partial="frontend/_templates.html")


@require_GET
@team_page(nav="templates")
def template_detail(request: TeamRequest, template_id: str) -> HttpResponseBase:
    template = access_template_page(request.team, template_id)
    builds = list(template.builds.order_by("-created_at", "-pk")[:SHOWN_BUILDS])
    running = Sandbox.objects.filter(template=template, team=request.team)
    counts = running.aggregate(active=Count("pk", filter=Q(state__in=ACTIVE)), started=Count("pk"))
    tags: dict[str, TemplateTag] = {}
    for tag in template.tags.select_related("build").order_by("-pk")[:500]:
        tags.setdefault(tag.tag, tag)
    context = {
        "item": rows_of([template])[0],
        "builds": builds,
        "counts": counts,
        "current_tags": sorted(tags.values(), key=lambda tag: tag.tag),
    }
    return render(request, "frontend/template.html", context, partial="frontend/_template.html")
