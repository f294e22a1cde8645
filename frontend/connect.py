"""What a person pastes to connect their code to this installation."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

KEY_PLACEHOLDER = "<your API key>"


@dataclass(frozen=True, kw_only=True)
class Snippet:
    key: str
    label: str
    code: str


def shell_settings(api_key: str = KEY_PLACEHOLDER) -> str:
    quoted = api_key if api_key != KEY_PLACEHOLDER else f'"{api_key}"'
    lines = [
        f"export E2B_API_URL={settings.PUBLIC_URL}",
        f"export E2B_SANDBOX_URL={settings.SANDBOX_URL}",
        f"export E2B_API_KEY={quoted}",
    ]
    return "\n".join(lines)


def snippets() -> list[Snippet]:
    return [
        Snippet(
            key="python",
            label="Python",
            code=(
                "# pip install e2b\n"
                "from e2b import Sandbox\n\n"
                "sandbox = Sandbox.create()\n"
                "print(sandbox.commands.run(\"echo 'Hello from' $(hostname)\").stdout)\n"
                "sandbox.kill()"
            ),
        ),
        Snippet(
            key="javascript",
            label="JavaScript",
            code=(
                "// npm install e2b\n"
                "import { Sandbox } from 'e2b'\n\n"
                "const sandbox = await Sandbox.create()\n"
                "console.log((await sandbox.commands.run('echo hello')).stdout)\n"
                "await sandbox.kill()"
            ),
        ),
        Snippet(
            key="curl",
            label="curl",
            code=(
                'curl "$E2B_API_URL/sandboxes" \\\n'
                '  -H "X-API-Key: $E2B_API_KEY" \\\n'
                '  -H "Content-Type: application/json" \\\n'
                '  -d \'{"templateID": "base", "timeout": 300}\''
            ),
        ),
    ]
