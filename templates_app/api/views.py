"""Templates, their aliases and tags. Builds have views of their own."""

from __future__ import annotations

from django.db.models import Q
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.auth import TEAM_OR_TOKEN, TeamAPIView, TeamRequest
from accounts.models import Team
from config.drf import answer, decode_cursor, encode_cursor, list_of, no_content, parse, query_int
from config.errors import InvalidArgument, NotFound, PermissionDenied
from templates_app.access import access_template, find_build, find_template, may_use
from templates_app.api.serializers import (
    AliasEntry,
    AssignedTags,
    AssignTagsInput,
    DeleteTagsInput,
    TagEntry,
    TemplateEntry,
    TemplateWithBuilds,
    UpdatedNames,
    UpdateInput,
    build_json,
    names_of,
    tag_json,
    template_json,
)
from templates_app.models import Template, TemplateKind
from templates_app.references import parse_reference
from templates_app.services import (
    assign_tags,
    delete_template,
    latest_tags,
    refuse_while_used,
    register_global_aliases,
    remove_tags,
    set_public,
    template_counts,
)

READ = frozenset({"GET"})
LIMIT = OpenApiParameter("limit", int, description="1 to 100")
NEXT_TOKEN = OpenApiParameter("nextToken", str)


def own_templates(request: TeamRequest) -> list[Template]:
    """The team's templates as lists show them, oldest first."""
    _check_team_id(request)
    return list(
        Template.objects.filter(team=request.team, kind=TemplateKind.TEMPLATE, deleted_at=None)
        .select_related("created_by")
        .prefetch_related("aliases")
        .order_by("created_at", "pk")
    )


def _check_team_id(request: TeamRequest) -> None:
    wanted = request.query_params.get("teamID")
    if wanted and wanted.lower() != str(request.team.public_id):
        raise InvalidArgument("Team ID param mismatch with the API key")


class TemplateList(TeamAPIView):
    """GET /templates"""

    schemes = TEAM_OR_TOKEN
    allowed_when_blocked = READ

    @extend_schema(
        parameters=[OpenApiParameter("teamID", str)],
        responses={200: list_of(TemplateEntry)},
        operation_id="listTemplates",
    )
    def get(self, request: TeamRequest) -> HttpResponse:
        templates = own_templates(request)
        facts = template_counts(templates)
        return answer([template_json(template, facts[template.pk]) for template in templates])


class TemplateListV2(TeamAPIView):
    """GET /v2/templates"""

    schemes = TEAM_OR_TOKEN
    allowed_when_blocked = READ

    @extend_schema(
        parameters=[OpenApiParameter("teamID", str), LIMIT, NEXT_TOKEN],
        responses={200: list_of(TemplateEntry)},
        operation_id="listTemplatesV2",
    )
    def get(self, request: TeamRequest) -> HttpResponse:
        _check_team_id(request)
        limit = query_int(request, "limit", default=100, minimum=1, maximum=100) or 100
        found = (
            Template.objects.filter(team=request.team, kind=TemplateKind.TEMPLATE, deleted_at=None)
            .select_related("created_by")
            .prefetch_related("aliases")
            .order_by("-created_at", "public_id")
        )
        token = request.query_params.get("nextToken")
        if token:
            at, public_id = decode_cursor(token)
            found = found.filter(Q(created_at__lt=at) | Q(created_at=at, public_id__gt=public_id))
        templates = list(found[: limit + 1])
        headers = {}
        if len(templates) > limit:
            templates = templates[:limit]
            last = templates[-1]
            headers["X-Next-Token"] = encode_cursor(last.created_at, last.public_id)
        facts = template_counts(templates)
        return answer(
            [template_json(template, facts[template.pk]) for template in templates],
            headers=headers,
        )


class DefaultTemplateList(TeamAPIView):
    """GET /default-templates"""

    allowed_when_blocked = READ

    @extend_schema(responses={200: list_of(TemplateEntry)}, operation_id="listDefaultTemplates")
    def get(self, request: TeamRequest) -> HttpResponse:
        """The platform's own templates; how much others use them is not told."""
        templates = list(
            Template.objects.filter(team=None, is_public=True, deleted_at=None)
            .prefetch_related("aliases")
            .order_by("public_id")
        )
        facts = template_counts(templates)
        bodies = [template_json(template, facts[template.pk]) for template in templates]
        for body in bodies:
            body |= {"spawnCount": 0, "lastSpawnedAt": None, "createdBy": None, "isDefault": True}
        return answer(bodies)


class TemplateDetail(TeamAPIView):
    """GET, PATCH, DELETE /templates/{templateID}"""

    schemes = TEAM_OR_TOKEN
    allowed_when_blocked = frozenset({"GET", "DELETE"})

    @extend_schema(
        parameters=[LIMIT, NEXT_TOKEN],
        responses={200: TemplateWithBuilds},
        operation_id="getTemplate",
    )
    def get(self, request: TeamRequest, reference: str) -> HttpResponse:
        template = access_template(request.team, reference)
        limit = query_int(request, "limit", default=100, minimum=1, maximum=100) or 100
        builds = template.builds.order_by("-created_at", "public_id")
        token = request.query_params.get("nextToken")
        if token:
            at, public_id = decode_cursor(token)
            builds = builds.filter(Q(created_at__lt=at) | Q(created_at=at, public_id__gt=public_id))
        page = list(builds[: limit + 1])
        headers = {}
        if len(page) > limit:
            page = page[:limit]
            headers["X-Next-Token"] = encode_cursor(page[-1].created_at, str(page[-1].public_id))
        body = template_json(template, template_counts([template])[template.pk])
        if template.team_id != request.team.pk:
            body |= {"spawnCount": 0, "lastSpawnedAt": None, "createdBy": None}
        body["builds"] = [build_json(build) for build in page]
        return answer(body, headers=headers)

    @extend_schema(request=UpdateInput, responses={200: None}, operation_id="updateTemplate")
    def patch(self, request: TeamRequest, reference: str) -> HttpResponse:
        template = access_template(request.team, reference, to_change=True)
        body = parse(UpdateInput, request.data)
        now = timezone.now()
        if body.public is not None:
            if body.public:
                register_global_aliases(template=template, now=now)
            set_public(template=template, is_public=body.public, now=now)
        return answer(None)

    @extend_schema(responses={204: None}, operation_id="deleteTemplate")
    def delete(self, request: TeamRequest, reference: str) -> HttpResponse:
        template = access_to_delete(request.team, reference)
        refuse_while_used(template)
        delete_template(template=template, now=timezone.now())
        return no_content()


def access_to_delete(team: Team, reference: str) -> Template:
    try:
        return access_template(team, reference, to_change=True)
    except PermissionDenied as error:
        raise PermissionDenied(f"You don't have access to template '{reference}'") from error


class TemplateUpdateV2(TeamAPIView):
    """PATCH /v2/templates/{templateID}"""

    schemes = TEAM_OR_TOKEN

    @extend_schema(
        request=UpdateInput, responses={200: UpdatedNames}, operation_id="updateTemplateV2"
    )
    def patch(self, request: TeamRequest, reference: str) -> HttpResponse:
        template = access_template(request.team, reference, to_change=True)
        body = parse(UpdateInput, request.data)
        if body.public is not None:
            set_public(template=template, is_public=body.public, now=timezone.now())
        return answer({"names": names_of(template)})


class AliasDetail(TeamAPIView):
    """GET /templates/aliases/{alias}"""

    allowed_when_blocked = READ

    @extend_schema(responses={200: AliasEntry}, operation_id="getTemplateAlias")
    def get(self, request: TeamRequest, reference: str) -> HttpResponse:
        try:
            parsed = parse_reference(reference)
        except InvalidArgument as error:
            raise InvalidArgument(f"Invalid alias format: {error.message}") from error
        template = find_template(request.team, parsed)
        if template is None or template.kind != TemplateKind.TEMPLATE:
            raise NotFound(f"template '{parsed.without_tag}' not found")
        if not may_use(request.team, template):
            raise PermissionDenied("You don't have access to this template alias")
        if parsed.tag and find_build(template, parsed.tag) is None:
            raise NotFound(f"tag '{parsed.tag}' does not exist for template '{parsed.without_tag}'")
        return answer({"templateID": template.public_id, "public": template.is_public})


class TagAssignments(TeamAPIView):
    """POST, DELETE /templates/tags"""

    allowed_when_blocked = frozenset({"DELETE"})

    @extend_schema(
        request=AssignTagsInput, responses={201: AssignedTags}, operation_id="assignTemplateTags"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        body = parse(AssignTagsInput, request.data)
        tags, build = assign_tags(
            team=request.team, target=body.target, tags=body.tags, now=timezone.now()
        )
        return answer({"tags": tags, "buildID": str(build.public_id)}, status=201)

    @extend_schema(
        request=DeleteTagsInput, responses={204: None}, operation_id="deleteTemplateTags"
    )
    def delete(self, request: TeamRequest) -> HttpResponse:
        body = parse(DeleteTagsInput, request.data)
        remove_tags(team=request.team, name=body.name, tags=body.tags)
        return no_content()


class TemplateTagList(TeamAPIView):
    """GET /templates/{templateID}/tags"""

    allowed_when_blocked = READ

    @extend_schema(responses={200: list_of(TagEntry)}, operation_id="listTemplateTags")
    def get(self, request: TeamRequest, reference: str) -> HttpResponse:
        template = access_template(request.team, reference)
        return answer([tag_json(assignment) for assignment in latest_tags(template)])
