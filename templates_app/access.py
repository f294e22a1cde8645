"""How a reference becomes a template and a build, for the team that asks."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Q

from accounts.models import Team
from config import ids
from config.errors import InvalidArgument, NotFound, PermissionDenied
from templates_app.models import BuildStatus, Template, TemplateAlias, TemplateBuild, TemplateTag
from templates_app.references import DEFAULT_TAG, Reference, parse_reference


@dataclass(frozen=True, kw_only=True)
class ResolvedTemplate:
    template: Template
    build: TemplateBuild
    alias: str  # the template's first, without namespace; empty when it has none


def find_template(team: Team, reference: Reference) -> Template | None:
    """The template a reference names for this team, whether or not the team may use it.

    An explicit namespace is looked up alone; a bare name first in the team's own namespace, then in
    the global one, then as a template id.
    """
    aliases = TemplateAlias.objects.select_related("template").filter(
        alias=reference.name, template__deleted_at=None
    )
    if reference.namespace is not None:
        found = aliases.filter(namespace=reference.namespace).first()
        return found.template if found else None
    by_namespace = {
        alias.namespace: alias.template
        for alias in aliases.filter(Q(namespace=team.slug) | Q(namespace=None))
    }
    found_template = by_namespace.get(team.slug) or by_namespace.get(None)
    if found_template is not None:
        return found_template
    return Template.objects.filter(public_id=reference.name, deleted_at=None).first()


def may_use(team: Team, template: Template) -> bool:
    return template.is_public or template.team_id == team.pk


def resolve_for_start(team: Team, raw: str) -> ResolvedTemplate:
    """The ready build that a sandbox of this team starts from.

    Raises: InvalidArgument for a malformed reference; NotFound when there is nothing to start,
    also for another team's private template.
    """
    try:
        reference = parse_reference(raw)
    except InvalidArgument as error:
        raise InvalidArgument(f"Invalid template reference: {error.message}") from error
    template = find_template(team, reference)
    if template is None or not may_use(team, template):
        raise NotFound(f"template '{reference.without_tag}' not found")
    build = find_build(template, reference.tag)
    if build is None:
        raise NotFound(
            f"tag '{reference.tag or DEFAULT_TAG}' does not exist"
            f" for template '{reference.without_tag}'"
        )
    return ResolvedTemplate(template=template, build=build, alias=first_alias(template))


def first_alias(template: Template) -> str:
    return (
        TemplateAlias.objects.filter(template=template)
        .order_by("pk")
        .values_list("alias", flat=True)
        .first()
        or ""
    )


def find_build(template: Template, tag: str | None) -> TemplateBuild | None:
    """The newest assignment of the tag whose build is ready; a build's UUID serves as a tag as
    well.
    """
    build_id = ids.parse_uuid(tag) if tag else None
    if build_id is not None:
        return TemplateBuild.objects.filter(
            template=template, public_id=build_id, status=BuildStatus.READY
        ).first()
    assignment = (
        TemplateTag.objects.select_related("build")
        .filter(template=template, tag=tag or DEFAULT_TAG, build__status=BuildStatus.READY)
        .order_by("-pk")
        .first()
    )
    return assignment.build if assignment else None


def access_template(team: Team, raw: str, *, to_change: bool = False) -> Template:
    """A template by id, alias or `namespace/alias`; any tag is parsed and ignored.

    Raises: InvalidArgument, NotFound, PermissionDenied when it is known but not this team's to use
    (or, `to_change`, not its own).
    """
    try:
        reference = parse_reference(raw)
    except InvalidArgument as error:
        raise InvalidArgument(f"Invalid template ID: {error.message}") from error
    template = find_template(team, reference)
    if template is None:
        raise NotFound(f"Template {reference.without_tag} not found")
    is_own = template.team_id == team.pk
    if not is_own and (to_change or not template.is_public):
        raise PermissionDenied(
            f"You don't have access to this sandbox template ({reference.without_tag})"
        )
    return template
