#!/bin/sh
# Fails if one of the given models runs less than 90 % of its layers on integers. For a
# pre-commit hook: see docs/guides/reports-and-ci.md.
#
# Run: sh samples/ci/verify_models.sh MODEL...
set -u
status=0
for model in "$@"; do
  echo "$model"
  qtool verify "$model" --min-coverage 90% --quiet || status=1
done
exit "$status"
