from django.contrib import admin

from sandboxes.models import Node, Sandbox, SandboxEvent


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that only the services may write."""

    def has_add_permission(self, request: object) -> bool:
        return False

    def has_change_permission(self, request: object, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: object, obj: object = None) -> bool:
        return False


@admin.register(Sandbox)
class SandboxAdmin(ReadOnlyAdmin):
    list_display = ("public_id", "team", "alias", "state", "node", "started_at", "end_reason")
    list_filter = ("state", "end_reason")
    search_fields = ("public_id", "team__slug", "alias")
    exclude = ("env_vars",)


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    list_display = ("node_id", "last_heartbeat_at", "is_lost", "is_draining", "drain_requested")


@admin.register(SandboxEvent)
class SandboxEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "sandbox", "kind", "level", "message")
    search_fields = ("sandbox__public_id",)
