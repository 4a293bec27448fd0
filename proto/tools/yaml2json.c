/* yaml2json FILE.yaml SYMBOL: print C source that holds the file as JSON, in
 *     const unsigned char SYMBOL[]; const size_t SYMBOL_len;
 * A build tool. Plain scalars that look like JSON's numbers and words become those, all others are
 * strings. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

static json_t *convert(yaml_document_t *doc, int id);

static json_t *scalar(const yaml_node_t *n)
{
    const char *s = (const char *)n->data.scalar.value;
    size_t len = n->data.scalar.length;
    json_t *value = NULL;
    if (n->data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
        value = json_loadb(s, len, JSON_DECODE_ANY, NULL);
    return value ? value : json_stringn(s, len);
}

static json_t *sequence(yaml_document_t *doc, const yaml_node_t *n)
{
    json_t *array = json_array();
    for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++)
        json_array_append_new(array, convert(doc, *i));
    return array;
}

static json_t *mapping(yaml_document_t *doc, const yaml_node_t *n)
{
    json_t *object = json_object();
    for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = yaml_document_get_node(doc, p->key);
        const char *name = (const char *)key->data.scalar.value;
        if (key->type != YAML_SCALAR_NODE || json_object_get(object, name)) {
            fprintf(stderr, "line %zu: a key that is no name, or is there twice\n",
                    key->start_mark.line + 1);
            exit(1);
        }
        json_object_set_new(object, name, convert(doc, p->value));
    }
    return object;
}

static json_t *convert(yaml_document_t *doc, int id)
{
    const yaml_node_t *n = yaml_document_get_node(doc, id);
    if (n->type == YAML_SEQUENCE_NODE)
        return sequence(doc, n);
    return n->type == YAML_MAPPING_NODE ? mapping(doc, n) : scalar(n);
}

static void print_source(const char *symbol, const char *json)
{
    size_t len = strlen(json);
    printf("#include <stddef.h>\n"
           "extern const unsigned char %s[];\nextern const size_t %s_len;\n"
           "const size_t %s_len = %zu;\nconst unsigned char %s[] = {",
           symbol, symbol, symbol, len, symbol);
    for (size_t i = 0; i < len; i++)
        printf("%s%d,", i % 20 ? "" : "\n", (unsigned char)json[i]);
    printf("};\n");
}

int main(int argc, char **argv)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    FILE *f = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (!f) {
        fprintf(stderr, "usage: yaml2json FILE.yaml SYMBOL\n");
        return 1;
    }
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_file(&parser, f);
    if (!yaml_parser_load(&parser, &doc) || !yaml_document_get_root_node(&doc)) {
        fprintf(stderr, "%s:%zu: %s\n", argv[1], parser.problem_mark.line + 1,
                parser.problem ? parser.problem : "empty");
        return 1;
    }
    json_t *json = convert(&doc, 1);
    char *text = json_dumps(json, JSON_COMPACT);
    print_source(argv[2], text);
    free(text);
    json_decref(json);
    yaml_document_delete(&doc);
    yaml_parser_delete(&parser);
    fclose(f);
    return 0;
}
