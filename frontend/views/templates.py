"""Templates of the team and of the platform, and their builds."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib import messages
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.http import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Team
from accounts.services import audit
from config.errors import InvalidArgument, NotFound, PermissionDenied
from config.ids import parse_uuid
from frontend.pages import TeamRequest, actor_of, done, render, team_page
from sandboxes.lifecycle import ACTIVE
from sandboxes.models import Sandbox
from templates_app.access import first_alias
from templates_app.models import BuildStatus, Template, TemplateBuild, TemplateTag
from templates_app.services import (
    assign_tags,
    delete_template,
    refuse_while_used,
    register_global_aliases,
    set_public,
)

PAGE_SIZE = 50
SHOWN_BUILDS = 50
SHOWN_LINES = 2000


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
        "is_own": template.team_id == request.team.pk,
        "current_tags": sorted(tags.values(), key=lambda tag: tag.tag),
    }
    return render(request, "frontend/template.html", context, partial="frontend/_template.html")


def access_own(request: TeamRequest, template_id: str) -> Template:
    """One that the team may change. Raises: NotFound, PermissionDenied for the platform's."""
    template = access_template_page(request.team, template_id)
    if template.team_id != request.team.pk:
        raise PermissionDenied("The platform's own templates are changed by its operator.")
    return template


def template_url(request: TeamRequest, template: Template) -> str:
    return reverse("frontend:template", args=[request.team.slug, template.public_id])


@require_GET
@team_page(nav="templates")
def build(request: TeamRequest, template_id: str, build_id: str) -> HttpResponseBase:
    """One build and its log, which grows while it runs."""
    template = access_template_page(request.team, template_id)
    parsed = parse_uuid(build_id)
    found = template.builds.filter(public_id=parsed).first() if parsed else None
    if found is None:
        raise NotFound("There is no such build.")
    newest = list(found.log.order_by("-number")[:SHOWN_LINES])
    context = {
        "item": rows_of([template])[0],
        "build": found,
        "is_running": found.status in (BuildStatus.WAITING, BuildStatus.BUILDING),
        "lines": newest[::-1],
    }
    return render(request, "frontend/build.html", context, partial="frontend/_build.html")


@require_POST
@team_page(nav="templates", needs="change_templates")
def publish(request: TeamRequest, template_id: str) -> HttpResponseBase:
    template = access_own(request, template_id)
    is_public = request.POST.get("public") == "yes"
    with transaction.atomic():
        if is_public:
            register_global_aliases(template=template, now=timezone.now())
        set_public(template=template, is_public=is_public, now=timezone.now())
        audit(
            team=request.team,
            actor=actor_of(request),
            action="template.published" if is_public else "template.unpublished",
            target=template.public_id,
        )
    word = "Every team may use it now." if is_public else "Only this team may use it now."
    return done(request, word, to=template_url(request, template), changed="templates")


@require_POST
@team_page(nav="templates", needs="change_templates")
def move_tag(request: TeamRequest, template_id: str) -> HttpResponseBase:
    """Point a tag at a ready build: forward, or back to an older one."""
    template = access_own(request, template_id)
    name = first_alias(template) or template.public_id
    build_id = parse_uuid(request.POST.get("build", ""))
    if build_id is None:
        raise InvalidArgument("Choose a build.")
    tags, _ = assign_tags(
        team=request.team,
        target=f"{name}:{build_id}",
        tags=[request.POST.get("tag", "").strip()],
        now=timezone.now(),
    )
    audit(
        team=request.team,
        actor=actor_of(request),
        action="template.tag_moved",
        target=template.public_id,
        data={"tag": tags[0], "build": str(build_id)},
    )
    message = f"{tags[0]} points at {str(build_id)[:8]} now."
    return done(request, message, to=template_url(request, template), changed="templates")


@require_POST
@team_page(nav="templates", needs="change_templates")
def delete(request: TeamRequest, template_id: str) -> HttpResponseBase:
    template = access_own(request, template_id)
    refuse_while_used(template)
    delete_template(template=template, now=timezone.now())
    audit(
        team=request.team,
        actor=actor_of(request),
        action="template.deleted",
        target=template.public_id,
    )
    messages.success(request, "Deleted the template.")
    return redirect("frontend:templates", team_slug=request.team.slug)
