# What the operators need of torch, read from the Python that will load them:
#   TORCH_ROOT, TORCH_VERSION, TORCH_CUDA_VERSION (empty for a CPU torch), TORCH_CXX11_ABI,
#   and the imported target torch_parts (headers and the C++ libraries, none of Python's).
# Not find_package(Torch): its CUDA configuration demands every CUDA library.

execute_process(
  COMMAND
    ${Python_EXECUTABLE} -c
    "import importlib.util, pathlib, runpy
root = pathlib.Path(importlib.util.find_spec('torch').origin).parent
facts = runpy.run_path(str(root / 'version.py'))
print(root, facts['__version__'], facts.get('cuda') or '', sep=';', end='')"
  OUTPUT_VARIABLE torch_facts
  RESULT_VARIABLE torch_result
  ERROR_VARIABLE torch_error)
if(NOT torch_result EQUAL 0)
  message(FATAL_ERROR "torch was not found by ${Python_EXECUTABLE}:\n${torch_error}")
endif()
list(GET torch_facts 0 TORCH_ROOT)
list(GET torch_facts 1 TORCH_VERSION)
list(GET torch_facts 2 TORCH_CUDA_VERSION)

# Only the ABI needs torch to be imported (seconds), so it is remembered for this torch.
if(NOT TORCH_ABI_OF STREQUAL "${TORCH_ROOT} ${TORCH_VERSION}")
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import torch; print(int(torch.compiled_with_cxx11_abi()), end='')"
    OUTPUT_VARIABLE torch_abi COMMAND_ERROR_IS_FATAL ANY)
  set(TORCH_CXX11_ABI ${torch_abi} CACHE INTERNAL "")
  set(TORCH_ABI_OF "${TORCH_ROOT} ${TORCH_VERSION}" CACHE INTERNAL "")
endif()

add_library(torch_parts INTERFACE)
target_include_directories(torch_parts SYSTEM
                           INTERFACE ${TORCH_ROOT}/include
                                     ${TORCH_ROOT}/include/torch/csrc/api/include)
target_compile_definitions(torch_parts INTERFACE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
target_link_libraries(torch_parts INTERFACE ${TORCH_ROOT}/lib/libtorch.so
                                            ${TORCH_ROOT}/lib/libtorch_cpu.so
                                            ${TORCH_ROOT}/lib/libc10.so)
