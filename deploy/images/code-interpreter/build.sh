#!/bin/sh
# Build the code interpreter's image; what has not changed is taken from Docker's layer cache.
# BASE: the image to build on. TAG: the result. LANGUAGES: "r java" or less, for a smaller image.
# Arguments go to docker build.
set -eu
cd "$(dirname "$0")"
exec docker build -q \
  --build-arg "BASE=${BASE:-sandlot/base:latest}" \
  --build-arg "LANGUAGES=${LANGUAGES-r java}" \
  --tag "${TAG:-sandlot/code-interpreter:latest}" "$@" .
