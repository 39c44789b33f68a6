#!/bin/sh
set -e
cd "$(dirname "$0")"
git pull -q --ff-only
compose="docker compose -f docker-compose.prod.yaml --env-file .env.prod"
$compose up -d --build
$compose exec -T app alembic upgrade head
