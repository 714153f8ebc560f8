# Builds a part of ggml's CUDA backend: the whole takes two CPU-hours. CMake includes this file after each project();
# when all is configured, the target keeps the sources named here. As a plugin it links without the rest of its symbols,
# and llama-server passes over it.
set(PART acc add-id arange argmax clamp concat cpy diagmask getrows ggml-cuda norm out-prod pad quantize rope scale softmax
    unary)

function(keep_a_part_of_ggml_cuda)
  get_target_property(sources ggml-cuda SOURCES)
  list(JOIN PART "|" names)
  list(FILTER sources INCLUDE REGEX "/(${names})[.]cu$")
  set_property(TARGET ggml-cuda PROPERTY SOURCES ${sources})
endfunction()

if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  cmake_language(DEFER CALL keep_a_part_of_ggml_cuda)
endif()
