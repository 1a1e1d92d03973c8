# Makes openapi_data.c, the definitions of api/openapi_data.h, out of openapi.yaml.
find_program(PYTHON3 python3 PATHS /usr/bin NO_DEFAULT_PATH REQUIRED) # Debian's: it has PyYAML
set(openapi_source ${CMAKE_BINARY_DIR}/openapi_data.c)

add_custom_command(
    OUTPUT ${openapi_source}
    COMMAND ${PYTHON3} ${CMAKE_SOURCE_DIR}/api/embed.py
        ${CMAKE_SOURCE_DIR}/openapi.yaml ${openapi_source}
    DEPENDS ${CMAKE_SOURCE_DIR}/openapi.yaml ${CMAKE_SOURCE_DIR}/api/embed.py
    COMMENT "Embedding openapi.yaml"
    VERBATIM)
