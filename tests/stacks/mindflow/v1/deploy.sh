#!/bin/sh
# Code first, then the database: between the two, and after a migration that went wrong, they are apart.
set -e
cd "$(dirname "$0")"
git pull -q --ff-only
docker compose up -d --build
docker compose exec -T api alembic upgrade head
