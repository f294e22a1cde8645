from django.urls import path

from templates_app.api import builds, views

# The fixed words come before the references they could be mistaken for.
urlpatterns = [
    path("v3/templates", builds.BuildRequests.as_view()),
    path("templates/<str:template_id>/files/<str:files_hash>", builds.TemplateFiles.as_view()),
    path("v2/templates/<str:template_id>/builds/<str:build_id>", builds.BuildStart.as_view()),
    path("templates/<str:template_id>/builds/<str:build_id>", builds.LegacyBuildStart.as_view()),
    path(
        "templates/<str:template_id>/builds/<str:build_id>/status",
        builds.BuildStatusDetail.as_view(),
    ),
    path("templates/<str:template_id>/builds/<str:build_id>/logs", builds.BuildLogList.as_view()),
    path("templates", builds.TemplateListAndRequest.as_view()),
    path("templates/tags", views.TagAssignments.as_view()),
    path("templates/aliases/<ref:reference>", views.AliasDetail.as_view()),
    path("templates/<ref:reference>/tags", views.TemplateTagList.as_view()),
    path("templates/<ref:reference>", builds.TemplateDetailAndRebuild.as_view()),
    path("default-templates", views.DefaultTemplateList.as_view()),
    path("v2/templates", builds.TemplateListV2AndRequest.as_view()),
    path("v2/templates/<ref:reference>", views.TemplateUpdateV2.as_view()),
]
