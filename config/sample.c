/* `clotho sample` says its request in the API's own words, so that one parser checks it. */
#include <jansson.h>

#include "settings.h"

/* NULL if the setting is absent, or a text that is not UTF-8. */
static json_t *field_value(const struct config *c, const struct setting *s)
{
    const void *value = setting_value(c, s);
    if (s->kind == SETTING_BOOL)
        return json_boolean(*(const bool *)value);
    const char *text = *(const char *const *)value;
    if (s->kind == SETTING_STRING)
        return json_string(text);
    return text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL; /* checked when it was read */
}

static bool is_given(const struct config *c, const struct setting *s)
{
    const void *value = setting_value(c, s);
    return s->kind == SETTING_BOOL ? *(const bool *)value : *(const char *const *)value != NULL;
}

static int add_fields(json_t *body, const struct config *c, struct err *err)
{
    for (int i = 0; i < n_settings; i++) {
        const struct setting *s = &settings[i];
        if (s->field && is_given(c, s) && json_object_set_new(body, s->field, field_value(c, s)))
            return err_set(err, ERR_INVALID, "--%s: is not valid UTF-8", s->flag);
    }
    if (c->n_args && json_object_set_new(body, "prompt", json_string(c->args[0])))
        return err_set(err, ERR_INVALID, "the prompt is not valid UTF-8");
    return 0;
}

char *config_sample_body(const struct config *c, struct err *err)
{
    json_t *body = json_object();
    char *text = add_fields(body, c, err) ? NULL : json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}
