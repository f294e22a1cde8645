"""The languages: their names, and a kernel for each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from interpreter.kernels.base import Kernel, KernelFailed
from interpreter.kernels.bash import BashKernel
from interpreter.kernels.jupyter import Dialect, JupyterKernel
from interpreter.kernels.piped import PipedKernel

ROOT = Path(__file__).parent.parent
KERNELSIDE = ROOT / "kernelside"

DEFAULT_LANGUAGE = "python"
# Started with the service, so that a sandbox has them warm.
WARM_LANGUAGES = ("python", "javascript")

_ALIASES = {"": DEFAULT_LANGUAGE, "js": "javascript", "ts": "typescript"}


def normalise(language: str | None) -> str:
    name = (language or "").strip().lower()
    return _ALIASES.get(name, name)


def make_kernel(language: str, cwd: str) -> Kernel:
    """Raises: KernelFailed for a language that is unknown, or not part of this image."""
    match language:
        case "python":
            return JupyterKernel(_python(), cwd)
        case "javascript" | "typescript":
            command = ["node", str(KERNELSIDE / "node" / "kernel.mjs")]
            env = {"SANDLOT_LANGUAGE": language, "NODE_PATH": "/usr/local/lib/node_modules"}
            return PipedKernel(language, command, env, cwd)
        case "bash":
            return BashKernel(cwd)
        case "r":
            _require("R", language)
            return JupyterKernel(_r(), cwd)
        case "java":
            _require("java", language)
            return JupyterKernel(_java(), cwd)
    raise KernelFailed(
        f"language '{language}' is not supported;"
        " use python, javascript, typescript, bash, r or java"
    )


def _require(program: str, language: str) -> None:
    if shutil.which(program) is None:
        raise KernelFailed(f"language '{language}' is not part of this image")


def _python() -> Dialect:
    folder = KERNELSIDE / "python"
    return Dialect(
        language="python",
        command=[
            os.environ.get("SANDLOT_KERNEL_PYTHON", "python3"),
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            f"--IPKernelApp.extra_config_file={folder / 'ipython_kernel_config.py'}",
        ],
        env={
            "IPYTHONDIR": "/root/.ipython",
            "PYTHONPATH": str(folder),
            "MATPLOTLIBRC": str(folder),
            "MPLCONFIGDIR": str(ROOT / "matplotlib"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # Breakpoints of a debugger that is not there are not worth a warning on stderr.
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        },
        # One expression, so that no name appears among the user's.
        silent_env=lambda values, remove: (
            f"__import__('sandlot_kernel').set_env({json.dumps([values, remove])!r})"
        ),
    )


def _r() -> Dialect:
    def silent_env(values: dict[str, str], remove: list[str]) -> str:
        lines = [f"Sys.setenv({_r_text(name)}={_r_text(value)})" for name, value in values.items()]
        lines += [f"Sys.unsetenv({_r_text(name)})" for name in remove]
        return f"invisible({{ {'; '.join(lines)} }})"

    return Dialect(
        language="r",
        command=["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"],
        env={"R_PROFILE_USER": str(KERNELSIDE / "r" / "profile.R")},
        silent_env=silent_env,
        transport="tcp",
    )


def _java() -> Dialect:
    def silent_env(values: dict[str, str], remove: list[str]) -> str:
        lines = [
            f"System.setProperty({_java_text(name)}, {_java_text(value)});"
            for name, value in values.items()
        ]
        lines += [f"System.clearProperty({_java_text(name)});" for name in remove]
        return "\n".join(lines)

    folder = ROOT / "venv" / "share" / "jupyter" / "kernels" / "java"
    return Dialect(
        language="java",
        command=[
            "java",
            # Without the package's launcher, which would stay as a second JVM.
            "--add-opens=jdk.jshell/jdk.jshell=ALL-UNNAMED",
            "-XX:TieredStopAtLevel=1",  # starts faster; users' snippets are short
            "-XX:+UseSerialGC",
            "-jar",
            str(folder / "jjava.jar"),
            "{connection_file}",
        ],
        env={},
        silent_env=silent_env,
        set_cwd=lambda cwd: f'System.setProperty("user.dir", {_java_text(cwd)});',
        transport="tcp",
        interrupt_by_message=True,
        splits_line_end=True,
    )


def _r_text(text: str) -> str:
    return '"' + "".join(_escaped(char, r_style=True) for char in text) + '"'


def _java_text(text: str) -> str:
    return '"' + "".join(_escaped(char, r_style=False) for char in text) + '"'


def _escaped(char: str, *, r_style: bool) -> str:
    if char in '"\\':
        return "\\" + char
    if " " <= char <= "~":
        return char
    if r_style:
        return f"\\U{ord(char):08x}"  # one kind of escape only: R refuses a mixture
    if char < " ":
        return f"\\{ord(char):03o}"  # Java reads \u000a as a line end in the source
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
