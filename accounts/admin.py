from django.contrib import admin

from accounts.models import APIKey, AuditEvent, Membership, Team, User


class MembershipInline(admin.TabularInline):  # type: ignore[type-arg]
    model = Membership
    extra = 0


@admin.register(User)
class UserAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("email", "name", "is_staff", "is_active", "date_joined")
    search_fields = ("email", "name")
    exclude = ("password", "user_permissions", "groups")
    readonly_fields = ("public_id", "last_login", "date_joined")
    inlines = (MembershipInline,)


@admin.register(Team)
class TeamAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("slug", "name", "is_personal", "is_blocked", "is_banned", "created_at")
    list_filter = ("is_blocked", "is_banned")
    search_fields = ("slug", "name", "public_id")
    readonly_fields = ("public_id", "created_at")
    inlines = (MembershipInline,)


@admin.register(APIKey)
class APIKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("name", "mask", "team", "created_at", "last_used_at", "revoked_at")
    search_fields = ("name", "team__slug")
    readonly_fields = ("public_id", "mask", "created_at", "last_used_at", "created_by", "team")

    def has_add_permission(self, request: object) -> bool:
        return False  # a key made here could not be shown


@admin.register(AuditEvent)
class AuditEventAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("at", "action", "target", "actor_label", "team")
    search_fields = ("action", "target", "actor_label")

    def has_add_permission(self, request: object) -> bool:
        return False

    def has_change_permission(self, request: object, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: object, obj: object = None) -> bool:
        return False
