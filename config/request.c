/* A command says its request in the API's own words, so that one parser checks it. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "settings.h"

static json_t *twist_value(const char *text)
{
    if (setting_is_object(text))
        return json_loads(text, 0, NULL);
    return json_pack("{s:s, s:s}", "type", "learned", "name", text);
}

/* NULL if the setting is a text that is not UTF-8. JSON was checked when it was read. */
static json_t *field_value(const struct config *c, const struct setting *s)
{
    const void *value = setting_value(c, s);
    if (s->kind == SETTING_BOOL)
        return json_boolean(*(const bool *)value);
    const char *text = *(const char *const *)value;
    if (s->kind == SETTING_STRING)
        return json_string(text);
    if (s->kind == SETTING_TWIST)
        return twist_value(text);
    return json_loads(text, JSON_DECODE_ANY, NULL);
}

static bool is_given(const struct config *c, const struct setting *s)
{
    const void *value = setting_value(c, s);
    return s->kind == SETTING_BOOL ? *(const bool *)value : *(const char *const *)value != NULL;
}

/* Set a field, or "a.b" in the object a, to a value, which is taken. -1: there is no value. */
static int put(json_t *body, const char *field, json_t *value)
{
    const char *dot = strchr(field, '.');
    if (!dot)
        return json_object_set_new(body, field, value);
    char name[32];
    snprintf(name, sizeof name, "%.*s", (int)(dot - field), field);
    if (!json_object_get(body, name))
        json_object_set_new(body, name, json_object());
    return json_object_set_new(json_object_get(body, name), dot + 1, value);
}

static int put_fields(json_t *body, const struct config *c, struct err *err)
{
    for (int i = 0; i < n_settings; i++) {
        const struct setting *s = &settings[i];
        if (s->field && is_given(c, s) && put(body, s->field, field_value(c, s)))
            return err_set(err, ERR_INVALID, "--%s: is not valid UTF-8", s->flag);
    }
    return 0;
}

static int put_targets(json_t *body, const struct config *c, struct err *err)
{
    if (!c->request.max_draws)
        return 0;
    if (c->request.targets)
        return err_set(err, ERR_INVALID, "--max-draws: finds what --targets gives; one of them");
    return put(body, "targets.source", json_string("rejection"));
}

/* The arguments: a prompt, or all that a twist is learned for. */
static int put_prompts(json_t *body, const struct config *c, enum config_command command,
                       struct err *err)
{
    json_t *prompts = json_array();
    int failed = 0;
    for (int i = 0; i < c->n_args && !failed; i++)
        failed = json_array_append_new(prompts, json_string(c->args[i]));
    if (c->n_args && command == CONFIG_LEARN)
        json_object_set(body, "prompts", prompts);
    else if (c->n_args)
        json_object_set(body, "prompt", json_array_get(prompts, 0));
    json_decref(prompts);
    return failed ? err_set(err, ERR_INVALID, "the prompt is not valid UTF-8") : 0;
}

char *config_request_body(const struct config *c, enum config_command command, struct err *err)
{
    json_t *body = json_object();
    int failed =
        put_targets(body, c, err) || put_fields(body, c, err) || put_prompts(body, c, command, err);
    char *text = failed ? NULL : json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}
