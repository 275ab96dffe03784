# find_header(VARIABLE HEADER find_path's further words), for a build folder that is configured more than once: CMake
# keeps what it has found, also when another folder is named later or the header is no longer there.
function(find_header variable header)
  set(asked "${ARGN}")
  set(kept ${variable}_ASKED)
  if(${variable} AND (NOT EXISTS "${${variable}}/${header}" OR (DEFINED ${kept} AND NOT "${${kept}}" STREQUAL asked)))
    unset(${variable} CACHE)
  endif()
  find_path(${variable} ${header} ${ARGN})
  set(${kept} "${asked}" CACHE INTERNAL "Where ${header} was looked for")
endfunction()
