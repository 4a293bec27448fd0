#include "event_json.h"

/* Made from openapi.yaml by tools/yaml2json. */
extern const unsigned char openapi_document[];
extern const size_t openapi_document_len;

const char *openapi_json(size_t *len)
{
    *len = openapi_document_len;
    return (const char *)openapi_document;
}
