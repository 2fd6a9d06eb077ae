# Decides whether the kernels are compiled: sets LAYERED_SGLANG_WITH_CUDA and says why (not).
# LAYERED_SGLANG_CUDA is AUTO (if nvcc and a CUDA torch are there), ON (or fail) or OFF.

set(LAYERED_SGLANG_WITH_CUDA FALSE)
set(cuda_reason "LAYERED_SGLANG_CUDA=OFF")
if(NOT LAYERED_SGLANG_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER)
    # NOTE: only a toolkit's own nvcc. One that pip installed beside torch has newer crt headers.
    find_program(LAYERED_SGLANG_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME PATH_SUFFIXES bin)
    find_program(LAYERED_SGLANG_NVCC nvcc PATHS /usr/local/cuda/bin)
    if(LAYERED_SGLANG_NVCC AND NOT DEFINED ENV{CUDACXX})
      set(CMAKE_CUDA_COMPILER ${LAYERED_SGLANG_NVCC})
    endif()
  endif()
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    set(cuda_reason "no nvcc in CUDACXX, CUDA_HOME, PATH or /usr/local/cuda")
  elseif(NOT TORCH_CUDA_VERSION)
    set(cuda_reason "torch ${TORCH_VERSION} has no CUDA")
  else()
    set(CMAKE_CUDA_ARCHITECTURES OFF) # sm_90a is named below
    enable_language(CUDA)
    string(REGEX MATCH "^[0-9]+" nvcc_major ${CMAKE_CUDA_COMPILER_VERSION})
    string(REGEX MATCH "^[0-9]+" torch_cuda_major ${TORCH_CUDA_VERSION})
    if(nvcc_major EQUAL torch_cuda_major)
      set(LAYERED_SGLANG_WITH_CUDA TRUE)
    else()
      set(cuda_reason
          "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not fit torch's CUDA ${TORCH_CUDA_VERSION}")
    endif()
  endif()
endif()

if(LAYERED_SGLANG_WITH_CUDA)
  # cudart comes from nvcc's own toolkit, found beside the compiler.
  find_package(CUDAToolkit REQUIRED)
  set(LAYERED_SGLANG_ARCHITECTURES "sm_90a")
  set(LAYERED_SGLANG_NVCC_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
elseif(LAYERED_SGLANG_CUDA STREQUAL "ON")
  message(FATAL_ERROR "LAYERED_SGLANG_CUDA=ON, but ${cuda_reason}")
else()
  set(LAYERED_SGLANG_ARCHITECTURES "")
  set(LAYERED_SGLANG_NVCC_VERSION "")
endif()
