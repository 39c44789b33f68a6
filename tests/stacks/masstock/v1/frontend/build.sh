#!/bin/sh
# The frontend, built on this host; what comes out is not in git.
set -e
cd "$(dirname "$0")"
rm -rf dist.new && mkdir -p dist.new dist
version=$(cat ../VERSION)
sed "s/VERSION/$version/" src/index.html >dist.new/index.html
printf %s "$version" >dist.new/version
cp dist.new/* dist/
rm -rf dist.new
