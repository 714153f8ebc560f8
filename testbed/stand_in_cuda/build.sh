#!/bin/bash
# Builds libggml-cuda.so, the stand-in, into a folder that holds a finished plugin build of llama.cpp
# (GGML_BACKEND_DL=ON): beside llama-server, where llama-server looks for it.
set -euo pipefail

(($# == 2)) || { echo "Needed: build.sh <llama.cpp's source tree> <folder of llama-server and libggml*.so>" >&2; exit 2; }
source_tree=$1
programs=$2

# --no-undefined: llama-server skips a plugin that cannot be loaded without a word.
"${CXX:-g++}" -std=c++17 -O1 -fPIC -shared -Wall -Wextra -DGGML_BACKEND_DL -DGGML_BACKEND_SHARED \
  -isystem "$source_tree/ggml/include" -isystem "$source_tree/ggml/src" -isystem "$source_tree/vendor" \
  "$(dirname "${BASH_SOURCE[0]}")/stand_in_cuda.cpp" \
  -L "$programs" -lggml -lggml-base -Wl,--no-undefined -Wl,-rpath,"\$ORIGIN" \
  -o "$programs/libggml-cuda.so"
