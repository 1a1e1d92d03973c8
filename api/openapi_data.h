/* openapi.yaml and the JSON made of it, as the build embeds them. */
#ifndef API_OPENAPI_DATA_H
#define API_OPENAPI_DATA_H

#include <stddef.h>

extern const unsigned char openapi_yaml[];
extern const size_t openapi_yaml_len;
extern const unsigned char openapi_json[];
extern const size_t openapi_json_len;

#endif
