from django.urls import path

from templates_app.api import views

# The fixed words come before the references they could be mistaken for.
urlpatterns = [
    path("templates", views.TemplateList.as_view()),
    path("templates/tags", views.TagAssignments.as_view()),
    path("templates/aliases/<ref:reference>", views.AliasDetail.as_view()),
    path("templates/<ref:reference>/tags", views.TemplateTagList.as_view()),
    path("templates/<ref:reference>", views.TemplateDetail.as_view()),
    path("default-templates", views.DefaultTemplateList.as_view()),
    path("v2/templates", views.TemplateListV2.as_view()),
    path("v2/templates/<ref:reference>", views.TemplateUpdateV2.as_view()),
]
