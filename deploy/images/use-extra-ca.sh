#!/bin/bash
# Inside an image: make Debian, pip, npm and programs started by a login shell trust the extra CAs.
set -euo pipefail
bundle=/etc/ssl/certs/ca-certificates.crt
update-ca-certificates >/dev/null
sed -i "/^\[global\]/a cert = $bundle" /etc/pip.conf
mkdir -p /usr/local/etc
echo "cafile=$bundle" >>/usr/local/etc/npmrc
cat >/etc/profile.d/sandlot-extra-ca.sh <<EOF
# Programs that bring a CA bundle of their own.
export NODE_EXTRA_CA_CERTS=\${NODE_EXTRA_CA_CERTS:-$bundle}
export REQUESTS_CA_BUNDLE=\${REQUESTS_CA_BUNDLE:-$bundle}
export SSL_CERT_FILE=\${SSL_CERT_FILE:-$bundle}
EOF
