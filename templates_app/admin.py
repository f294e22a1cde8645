from django.contrib import admin

from templates_app.models import Template, TemplateAlias, TemplateBuild, TemplateTag


class AliasInline(admin.TabularInline):  # type: ignore[type-arg]
    model = TemplateAlias
    extra = 0


@admin.register(Template)
class TemplateAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("public_id", "team", "kind", "is_public", "spawn_count", "deleted_at")
    list_filter = ("kind", "is_public")
    search_fields = ("public_id", "aliases__alias", "team__slug")
    readonly_fields = ("public_id", "created_at", "spawn_count", "last_spawned_at")
    inlines = (AliasInline,)


@admin.register(TemplateBuild)
class TemplateBuildAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("public_id", "template", "status", "image", "cpu_count", "memory_mb")
    list_filter = ("status",)
    search_fields = ("public_id", "template__public_id", "image")


@admin.register(TemplateTag)
class TemplateTagAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("template", "tag", "build", "created_at")
    search_fields = ("tag", "template__public_id")
