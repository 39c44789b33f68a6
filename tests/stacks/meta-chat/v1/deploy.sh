#!/bin/sh
set -e
cd "$(dirname "$0")"
git pull -q --ff-only
cd docker
docker compose --env-file .env.production --profile ops up -d --build
docker compose --env-file .env.production exec -T api alembic upgrade head
