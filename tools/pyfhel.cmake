# CMake toolchain file for building Pyfhel, named by the environment variable CMAKE_TOOLCHAIN_FILE.
# By default the SEAL inside Pyfhel clones three projects from GitHub. They serve compression only, which secagg does
# not use; without them pip alone builds Pyfhel. FORCE overrides the values that Pyfhel's own build passes.
foreach(option SEAL_BUILD_DEPS SEAL_USE_MSGSL SEAL_USE_ZLIB SEAL_USE_ZSTD)
  set(${option} OFF CACHE BOOL "" FORCE)
endforeach()
