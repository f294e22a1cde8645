"""Copy the browser libraries of the dashboard out of npm packages into static/frontend/vendor/.

    python frontend/build_assets.py          installs by the lockfile when it changed, then copies
    python frontend/build_assets.py --check  exits 1 when a copy is missing or stale

Nothing is bundled or compiled: browsers load the files as published, from our own origin. Safe to
repeat; does nothing when the lockfile, this script and the copies agree. Standard library only,
since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "node_modules"
VENDOR = HERE / "static" / "frontend" / "vendor"
STAMP = VENDOR / "STAMP"

# package: [(file in the package, name in vendor/)]
FILES: dict[str, list[tuple[str, str]]] = {
    "htmx.org": [("dist/htmx.min.js", "htmx.js")],
    "idiomorph": [("dist/idiomorph-ext.min.js", "idiomorph-ext.js")],
    "uplot": [("dist/uPlot.esm.js", "uplot.js"), ("dist/uPlot.min.css", "uplot.css")],
    "@xterm/xterm": [("lib/xterm.mjs", "xterm.js"), ("css/xterm.css", "xterm.css")],
    "@xterm/addon-fit": [("lib/addon-fit.mjs", "xterm-fit.js")],
    "@xterm/addon-search": [("lib/addon-search.mjs", "xterm-search.js")],
    "@xterm/addon-web-links": [("lib/addon-web-links.mjs", "xterm-web-links.js")],
    "@fontsource-variable/geist": [("files/geist-latin-wght-normal.woff2", "geist.woff2")],
    "@fontsource-variable/geist-mono": [
        ("files/geist-mono-latin-wght-normal.woff2", "geist-mono.woff2")
    ],
}
TEXT_SUFFIXES = {".js", ".css"}
# Maps are not copied, and a reference to a missing one stops Django's collectstatic.
SOURCE_MAP = re.compile(rb"^\s*(?://|/\*)#\s*sourceMappingURL=.*$", re.MULTILINE)


def wanted_stamp() -> str:
    """What the copies were made from: a digest of the lockfile and of this script."""
    digest = hashlib.sha256()
    for path in (HERE / "package-lock.json", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_fresh() -> bool:
    names = [name for files in FILES.values() for _, name in files]
    return (
        STAMP.exists()
        and STAMP.read_text().strip() == wanted_stamp()
        and all((VENDOR / name).exists() for name in names)
    )


def copy_all() -> None:
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    notices = []
    for package, files in FILES.items():
        meta = json.loads((PACKAGES / package / "package.json").read_text())
        label = f"{package} {meta['version']} ({meta['license']})"
        for source, name in files:
            data = (PACKAGES / package / source).read_bytes()
            if Path(name).suffix in TEXT_SUFFIXES:
                data = f"/*! {label} */\n".encode() + SOURCE_MAP.sub(b"", data)
            (VENDOR / name).write_bytes(data)
        licence = next((PACKAGES / package).glob("LICEN[SC]E*"), None)
        body = licence.read_text().strip() if licence else f"Licence: {meta['license']}"
        notices.append(f"{label}\n{'=' * len(label)}\n{body}\n")
    (VENDOR / "LICENSES.txt").write_text("\n".join(notices))
    STAMP.write_text(wanted_stamp() + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="only say whether the copies are fresh"
    )
    arguments = parser.parse_args()
    if is_fresh():
        return 0
    if arguments.check:
        sys.stderr.write("frontend assets are missing or stale; run `make assets`\n")
        return 1
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write("npm is not installed (Debian: apt-get install npm), needed once\n")
        return 1
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, cwd=HERE, check=False)
    if result.returncode:
        return result.returncode
    copy_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
