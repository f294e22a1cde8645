from django.urls import path

from accounts.api import views

urlpatterns = [
    path("teams", views.TeamList.as_view()),
    path("api-keys", views.APIKeyList.as_view()),
    path("api-keys/<str:key_id>", views.APIKeyDetail.as_view()),
    path("access-tokens", views.AccessTokenList.as_view()),
    path("access-tokens/<str:token_id>", views.AccessTokenDetail.as_view()),
    path("admin/teams/<str:team_id>/api-keys", views.AdminAPIKeyList.as_view()),
    path("admin/teams/<str:team_id>/api-keys/<str:key_id>", views.AdminAPIKeyDetail.as_view()),
]
