"""`manage.py ensure_template`: one of the platform's templates, from an image the engine has."""

from __future__ import annotations

import json
from typing import Any

import docker
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from docker.errors import DockerException, ImageNotFound

from config.errors import InvalidArgument
from templates_app.references import parse_reference
from templates_app.services import ImageFacts, ensure_platform_template


class Command(BaseCommand):
    help = "Register a platform template; a new build is made only when image or settings differ."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--name", required=True)
        parser.add_argument("--image", required=True)
        parser.add_argument("--image-id", help="content id; asked of the Docker engine by default")
        parser.add_argument("--cpu", type=int, default=2)
        parser.add_argument("--memory", type=int, default=1024, help="MiB")
        parser.add_argument("--disk", type=int, default=10240, help="MiB")
        parser.add_argument("--start-cmd", default="")
        parser.add_argument("--ready-cmd", default="")
        parser.add_argument("--user", default="user")
        parser.add_argument("--workdir", default="")
        parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
        parser.add_argument("--pool-size", type=int, help="warm containers; default: the setting")
        parser.add_argument("--public", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            reference = parse_reference(options["name"])
        except InvalidArgument as error:
            raise CommandError(error.message) from error
        if reference.namespace is not None or reference.tag is not None:
            raise CommandError("--name is a bare name: the platform's templates have no namespace")
        for name in ("cpu", "memory", "disk"):
            if options[name] < 1:
                raise CommandError(f"--{name} must be at least 1")
        image_id, size_bytes = options["image_id"], 0
        if not image_id:
            image_id, size_bytes = _inspect(options["image"])
        facts = ImageFacts(
            image=options["image"],
            image_id=image_id,
            size_bytes=size_bytes,
            cpu_count=options["cpu"],
            memory_mb=options["memory"],
            disk_size_mb=options["disk"],
            start_cmd=options["start_cmd"],
            ready_cmd=options["ready_cmd"],
            default_user=options["user"],
            workdir=options["workdir"],
            env=_env(options["env"]),
            pool_size=options["pool_size"],
        )
        template, build, is_new = ensure_platform_template(
            name=reference.name, facts=facts, is_public=options["public"], now=timezone.now()
        )
        self.stdout.write(
            json.dumps(
                {
                    "templateID": template.public_id,
                    "buildID": str(build.public_id),
                    "created": is_new,
                }
            )
        )


def _inspect(image: str) -> tuple[str, int]:
    try:
        client = docker.from_env()
        try:
            found = client.images.get(image)
        finally:
            client.close()
    except ImageNotFound as error:
        raise CommandError(f"the Docker engine has no image {image}") from error
    except DockerException as error:
        raise CommandError(f"the Docker engine does not answer: {error}") from error
    return str(found.id), int(found.attrs.get("Size", 0))


def _env(pairs: list[str]) -> dict[str, str]:
    env = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise CommandError(f"--env wants NAME=VALUE, not {pair!r}")
        env[name] = value
    return env
