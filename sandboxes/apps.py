from django.apps import AppConfig


class SandboxesConfig(AppConfig):
    name = "sandboxes"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from sandboxes.builds import NodeRunner
        from templates_app.builds import install_runner

        install_runner(NodeRunner())
