#!/bin/sh
# Build httpbin's image. BASE: the image to build on. TAG: the result. Arguments go to docker build.
set -eu
cd "$(dirname "$0")"
exec docker build -q --build-arg "BASE=${BASE:-sandlot/base:latest}" \
  --tag "${TAG:-sandlot/httpbin:latest}" "$@" .
