#!/bin/sh
# The upgrade, as the connector's guide has it.
set -e
cd "$(dirname "$0")"
git pull -q --ff-only
docker compose up -d --build
