# libeditar_tensorrt, which runs engines of TensorRT or of TensorRT for RTX: built where their headers are. Only headers
# are needed, and libeditar needs nothing of NVIDIA's: all libraries are opened at run time.
set(TENSORRT_ROOT "" CACHE PATH "Folder with the headers of TensorRT (10.1 or newer) or TensorRT for RTX")
set(CUDA_ROOT "" CACHE PATH "Folder with the headers of CUDA's runtime")

find_header(TENSORRT_INCLUDE NvInfer.h HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
find_header(CUDA_INCLUDE cuda_runtime_api.h
  HINTS "${CUDA_ROOT}" "${TENSORRT_ROOT}" ENV CUDA_HOME ENV CUDA_PATH
  PATHS /usr/local/cuda
  PATH_SUFFIXES include)

set(why "")
set(headers "")
if(NOT TENSORRT_INCLUDE)
  set(why "NvInfer.h was not found; give the folder of TensorRT's headers: -DTENSORRT_ROOT=FOLDER")
elseif(NOT CUDA_INCLUDE)
  set(why "cuda_runtime_api.h was not found; give the folder of CUDA's headers: -DCUDA_ROOT=FOLDER")
else()
  file(STRINGS ${TENSORRT_INCLUDE}/NvInferVersion.h lines
    REGEX "^#define (NV_TENSORRT|TRT)_(MAJOR|MINOR)(_ENTERPRISE|_RTX)? +[0-9]+")
  set(library "TensorRT")
  if(lines MATCHES "_RTX ")
    set(library "TensorRT for RTX")
    list(FILTER lines INCLUDE REGEX "_RTX ")
  endif()
  foreach(line ${lines})
    if(line MATCHES "_(MAJOR|MINOR)(_ENTERPRISE|_RTX)? +([0-9]+)")
      set(header_${CMAKE_MATCH_1} ${CMAKE_MATCH_3})
    endif()
  endforeach()
  set(headers "${library} ${header_MAJOR}.${header_MINOR}")
  if(library STREQUAL "TensorRT" AND "${header_MAJOR}.${header_MINOR}" VERSION_LESS 10.1)
    set(why "the headers in ${TENSORRT_INCLUDE} are of ${headers}, but 10.1 or newer is needed")
  endif()
endif()

if(why)
  if(TENSORRT_ROOT OR CUDA_ROOT)
    message(FATAL_ERROR "libeditar_tensorrt cannot be built: ${why}")
  endif()
  message(STATUS "libeditar_tensorrt is not built: ${why}")
else()
  message(STATUS "libeditar_tensorrt is built for ${headers}")
  file(GLOB plugin_sources CONFIGURE_DEPENDS src/tensorrt/*.cpp)
  add_library(editar_tensorrt MODULE ${plugin_sources} src/dynamic_library.cpp)
  target_include_directories(editar_tensorrt PRIVATE include src)
  target_include_directories(editar_tensorrt SYSTEM PRIVATE ${TENSORRT_INCLUDE} ${CUDA_INCLUDE})
  target_compile_definitions(editar_tensorrt PRIVATE EDITAR_STATIC)
  target_link_libraries(editar_tensorrt PRIVATE $<BUILD_INTERFACE:editar_flags> ${CMAKE_DL_LIBS})
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_link_options(editar_tensorrt PRIVATE
      -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/editar_tensorrt.map -Wl,--no-undefined)
    set_target_properties(editar_tensorrt PROPERTIES
      LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cmake/editar_tensorrt.map)
  endif()
  # Beside libeditar, where it is looked for.
  install(TARGETS editar_tensorrt
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
