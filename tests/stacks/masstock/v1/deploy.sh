#!/bin/sh
# What CI runs on the server.
set -e
cd "$(dirname "$0")"
git pull -q --ff-only
frontend/build.sh
docker compose -f docker-compose.production.yml up -d --build
