#!/bin/sh
# Builds a TensorRT engine of an exported detector, for batches of 1 to 8 images, and measures it.
#
#   sh build_engine.sh mine.onnx 256 256
#
# The numbers are the height and width of the detector's input: input_height and input_width in the
# metadata of the file. Without --noTF32, scores move by more than the margin of the threshold.
set -eu
model=$1
size=$2x$3x3

exec trtexec \
  --onnx="$model" \
  --saveEngine="${model%.onnx}.engine" \
  --minShapes=images:1x"$size" \
  --optShapes=images:8x"$size" \
  --maxShapes=images:8x"$size" \
  --noTF32
