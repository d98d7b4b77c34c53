#!/bin/sh
# Makes the quantized digit model and fails where it is not what it should be. For a CI job:
# see docs/guides/reports-and-ci.md.
#
# Run: sh samples/ci/check_model.sh [FOLDER]
#
# Writes the models, the report as a page and as JUnit XML, and a log into FOLDER (default: ci-output). The exit code is 1
# when a gate is missed, and 2 when something could not be run at all.
set -eu
folder=${1:-ci-output}
samples=$(dirname "$0")/..
mkdir -p "$folder"
log=$folder/qtool.log

qtool doctor --log-file "$log"

# From the weights to a float graph that computes the same, and on to integers.
qtool convert "$samples/mnist_cnn.pth" --model "$samples/mnist_cnn.py:build" --calib-data "$samples/digits_calib.npz" \
  -o "$folder/digits.onnx" --force --log-file "$log"
qtool quantize "$folder/digits.onnx" --calib-data "$samples/digits_calib.npz" --effort fast --smallest \
  -o "$folder/digits.int8.onnx" --force --log-file "$log"

# Does the same run make the same bytes?
qtool quantize --locked "$folder/digits.int8.manifest.json" --force --quiet --log-file "$log"

# Does onnxruntime run it on integers, and is it as accurate as it has to be?
qtool verify "$folder/digits.int8.onnx" --min-coverage 90% --log-file "$log"
set -- "$folder/digits.onnx" "$folder/digits.int8.onnx" --data "$samples/digits_eval.npz" \
  --fail-if 'top1_drop > 0.3' --fail-if 'size_ratio > 0.4' \
  --html "$folder/report.html" --junit "$folder/report.xml" --force --log-file "$log"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
  set -- "$@" --step-summary
fi
qtool report "$@"
