/* Events, errors, answers and the model list, byte for byte; and the API description against the
 * parser: every field of the one is known to the other. */
#include <jansson.h>
#include <locale.h>
#include <stdbool.h>

#include "../../proto/event_json.h"
#include "../../proto/request.h"
#include "../check.h"
#include "../tiny_info.h"

#define TEXT(s)                                                                                    \
    {                                                                                              \
        (s), sizeof(s) - 1                                                                         \
    }

static const int32_t ids[] = {5, 0, 319};
static const double log_p[] = {-0.5, -INFINITY, NAN};
static const struct event_text texts[] = {TEXT("a"), TEXT("")};
static const struct event_hole holes[] = {{"z", TEXT(" x")}, {"q\"", TEXT("")}};

static const struct event start = {
    .type = EVENT_START, .start = {"smp-1", "tiny", 64, 5, INT64_C(-9223372036854775807) - 1}};
static const struct event step = {.type = EVENT_STEP, .step = {12, 60, 41.25, -3.21, 0, NULL}};
static const struct event step_texts = {.type = EVENT_STEP, .step = {1, 2, 2, 0, 2, texts}};
static const struct event resample = {.type = EVENT_RESAMPLE, .resample = {13, 20.1, ids, 3}};
static const struct event sample = {.type = EVENT_SAMPLE,
                                    .sample = {.index = 0,
                                               .text = TEXT("hi"),
                                               .tokens = ids,
                                               .n_tokens = 3,
                                               .log_weight = -1.2,
                                               .weight = 0.034,
                                               .log_p = -33.1,
                                               .log_phi = -2.2,
                                               .stopped = true}};
static const struct event sample_full = {.type = EVENT_SAMPLE,
                                         .sample = {.index = 1,
                                                    .text = TEXT("\"\\\b\f\n\r\t\1\x1f/\x7f é☃𝄞"),
                                                    .tokens = ids,
                                                    .n_tokens = 3,
                                                    .token_log_p = log_p,
                                                    .log_weight = -INFINITY,
                                                    .weight = 0,
                                                    .log_p = -0.0,
                                                    .log_phi = -INFINITY,
                                                    .holes = holes,
                                                    .n_holes = 2}};
static const struct event score = {
    .type = EVENT_SCORE, .score = {.index = 0, .log_p = -1.5, .tokens = ids, .n_tokens = 2}};
static const struct event score_full = {.type = EVENT_SCORE,
                                        .score = {.index = 1,
                                                  .log_p = -1.5,
                                                  .log_phi = -INFINITY,
                                                  .has_phi = true,
                                                  .tokens = ids,
                                                  .n_tokens = 2,
                                                  .log_twist = log_p,
                                                  .token_log_p = log_p}};
static const struct event done = {.type = EVENT_DONE,
                                  .done = {.log_z = -3.3,
                                           .ess = 38,
                                           .prompt_tokens = 5,
                                           .completion_tokens = INT64_C(1) << 40,
                                           .queue_seconds = 0.001,
                                           .prompt_seconds = 0.25,
                                           .sample_seconds = 12.3456789012345678}};
static const struct event lower = {.type = EVENT_BOUND, .bound = {false, -3.5}};
static const struct event upper = {.type = EVENT_BOUND, .bound = {true, -INFINITY}};
static const struct event update = {.type = EVENT_UPDATE, .update = {7, -0.25, -3.5, 12.5}};
static const struct event bounds_done = {.type = EVENT_DONE,
                                         .done = {.kind = JOB_BOUNDS,
                                                  .log_z = -3.25,
                                                  .lower = {-3.5, 0.125, 4},
                                                  .upper = {-3, 0.25, 2},
                                                  .gap = 0.5,
                                                  .kl_q_sigma = {0.75, 0.0625, 128},
                                                  .kl_sigma_q = {1.5, 0.5, 4},
                                                  .prompt_tokens = 5,
                                                  .completion_tokens = INT64_C(1) << 40}};
/* Lower bounds alone, of one run that died out. */
static const struct event lower_done = {.type = EVENT_DONE,
                                        .done = {.kind = JOB_BOUNDS,
                                                 .log_z = NAN,
                                                 .lower = {-INFINITY, NAN, 1},
                                                 .upper = {NAN, NAN, 0},
                                                 .gap = NAN,
                                                 .kl_q_sigma = {NAN, NAN, 0},
                                                 .kl_sigma_q = {NAN, NAN, 0},
                                                 .prompt_tokens = 5,
                                                 .completion_tokens = INT64_C(1) << 40}};
static const struct event learn_done = {.type = EVENT_DONE,
                                        .done = {.kind = JOB_LEARN,
                                                 .name = "happy",
                                                 .updates = 100,
                                                 .log_z = -3.5,
                                                 .prompt_tokens = 5,
                                                 .completion_tokens = INT64_C(1) << 40,
                                                 .sample_seconds = 0.5}};
static const struct event failed = {.type = EVENT_ERROR,
                                    .error = {ERR_INTERNAL, "", "the device failed"}};

#define SAMPLE_MEMBERS                                                                             \
    "\"index\":0,\"text\":\"hi\",\"tokens\":[5,0,319],\"log_weight\":-1.2,\"weight\":0.034,"       \
    "\"log_p\":-33.1,\"log_phi\":-2.2,\"finish_reason\":\"stop\""
#define USAGE                                                                                      \
    "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1099511627776,"                          \
    "\"total_tokens\":1099511627781}"
#define DONE_MEMBERS                                                                               \
    "\"log_z\":-3.3,\"ess\":38," USAGE ",\"timings\":{\"queue_seconds\":0.001,"                    \
    "\"prompt_seconds\":0.25,\"sample_seconds\":12.3456789012346}"

#define NO_TIMINGS "\"timings\":{\"queue_seconds\":0,\"prompt_seconds\":0,\"sample_seconds\":0}"
#define BOUNDS_MEMBERS                                                                             \
    "\"log_z\":-3.25,\"lower\":{\"mean\":-3.5,\"stderr\":0.125,\"n\":4},"                          \
    "\"upper\":{\"mean\":-3,\"stderr\":0.25,\"n\":2},\"gap\":0.5,"                                 \
    "\"kl_q_sigma\":0.75,\"kl_q_sigma_stderr\":0.0625,"                                            \
    "\"kl_sigma_q\":1.5,\"kl_sigma_q_stderr\":0.5," USAGE "," NO_TIMINGS
#define LEARN_MEMBERS                                                                              \
    "\"name\":\"happy\",\"updates\":100,\"log_z\":-3.5," USAGE                                     \
    ",\"timings\":{\"queue_seconds\":0,\"prompt_seconds\":0,\"sample_seconds\":0.5}"
#define START_MEMBERS                                                                              \
    "\"id\":\"smp-1\",\"model\":\"tiny\",\"particles\":64,\"seed\":-9223372036854775808,"          \
    "\"prompt_tokens\":5"
#define LOWER  "{\"kind\":\"lower\",\"log_z\":-3.5}"
#define UPPER  "{\"kind\":\"upper\",\"log_z\":null}"
#define UPDATE "{\"update\":7,\"loss\":-0.25,\"log_z\":-3.5,\"ess\":12.5}"

static void expect_event(const struct event *e, const char *want)
{
    struct buf out = {0};
    json_error_t why;
    event_json(&out, e);
    EXPECT_STR(out.data, want);
    json_t *json = json_loads(out.data, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    EXPECT(json != NULL);
    json_decref(json);
    buf_free(&out);
}

static void test_events(void)
{
    expect_event(&start,
                 "{\"event\":\"start\",\"id\":\"smp-1\",\"model\":\"tiny\",\"particles\":64,"
                 "\"seed\":-9223372036854775808,\"prompt_tokens\":5}");
    expect_event(&step, "{\"event\":\"step\",\"step\":12,\"active\":60,\"ess\":41.25,"
                        "\"log_z\":-3.21}");
    expect_event(&step_texts, "{\"event\":\"step\",\"step\":1,\"active\":2,\"ess\":2,\"log_z\":0,"
                              "\"texts\":[\"a\",\"\"]}");
    expect_event(&resample, "{\"event\":\"resample\",\"step\":13,\"ess\":20.1,"
                            "\"ancestors\":[5,0,319]}");
    expect_event(&sample, "{\"event\":\"sample\"," SAMPLE_MEMBERS "}");
    expect_event(&sample_full,
                 "{\"event\":\"sample\",\"index\":1,"
                 "\"text\":\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f/\x7f é☃𝄞\","
                 "\"tokens\":[5,0,319],\"log_weight\":null,\"weight\":0,\"log_p\":0,"
                 "\"log_phi\":null,\"finish_reason\":\"length\","
                 "\"token_log_p\":[-0.5,null,null],\"holes\":{\"z\":\" x\",\"q\\\"\":\"\"}}");
    expect_event(&score, "{\"event\":\"score\",\"index\":0,\"log_p\":-1.5,\"tokens\":[5,0]}");
    expect_event(&score_full, "{\"event\":\"score\",\"index\":1,\"log_p\":-1.5,\"log_phi\":null,"
                              "\"log_twist\":[-0.5,null],\"tokens\":[5,0],"
                              "\"token_log_p\":[-0.5,null]}");
    expect_event(&done, "{\"event\":\"done\"," DONE_MEMBERS "}");
    expect_event(&failed, "{\"event\":\"error\",\"error\":{\"message\":\"the device failed\","
                          "\"type\":\"api_error\",\"param\":null,\"code\":null}}");
}

static void test_study_events(void)
{
    expect_event(&lower, "{\"event\":\"bound\",\"kind\":\"lower\",\"log_z\":-3.5}");
    expect_event(&upper, "{\"event\":\"bound\",\"kind\":\"upper\",\"log_z\":null}");
    expect_event(&update, "{\"event\":\"update\",\"update\":7,\"loss\":-0.25,\"log_z\":-3.5,"
                          "\"ess\":12.5}");
    expect_event(&bounds_done, "{\"event\":\"done\"," BOUNDS_MEMBERS "}");
    expect_event(&lower_done,
                 "{\"event\":\"done\",\"log_z\":null,"
                 "\"lower\":{\"mean\":null,\"stderr\":null,\"n\":1},"
                 "\"upper\":{\"mean\":null,\"stderr\":null,\"n\":0},\"gap\":null,"
                 "\"kl_q_sigma\":null,\"kl_q_sigma_stderr\":null,"
                 "\"kl_sigma_q\":null,\"kl_sigma_q_stderr\":null," USAGE "," NO_TIMINGS "}");
    expect_event(&learn_done, "{\"event\":\"done\"," LEARN_MEMBERS "}");
}

/* Text of a NUL byte, of no bytes at all, and numbers at the edges of double. */
static void test_edges(void)
{
    struct event e = sample;
    e.sample.text = (struct event_text){"a\0b", 3};
    e.sample.n_tokens = 0;
    e.sample.tokens = NULL;
    e.sample.log_weight = 1e-300;
    e.sample.weight = 0.1;
    e.sample.log_p = -1.0 / 3;
    e.sample.log_phi = -1.5e300;
    expect_event(&e, "{\"event\":\"sample\",\"index\":0,\"text\":\"a\\u0000b\",\"tokens\":[],"
                     "\"log_weight\":1e-300,\"weight\":0.1,\"log_p\":-0.333333333333333,"
                     "\"log_phi\":-1.5e+300,\"finish_reason\":\"stop\"}");
    e.sample.text = (struct event_text){NULL, 0};
    e.sample.log_p = -2.5;
    expect_event(&e, "{\"event\":\"sample\",\"index\":0,\"text\":\"\",\"tokens\":[],"
                     "\"log_weight\":1e-300,\"weight\":0.1,\"log_p\":-2.5,"
                     "\"log_phi\":-1.5e+300,\"finish_reason\":\"stop\"}");
}

static void test_errors(void)
{
    static const struct {
        enum err_code code;
        int status;
        const char *type;
    } kinds[] = {{ERR_INVALID, 400, "invalid_request_error"},
                 {ERR_NOT_FOUND, 404, "not_found_error"},
                 {ERR_BUSY, 429, "rate_limit_error"},
                 {ERR_UNAVAILABLE, 503, "overloaded_error"},
                 {ERR_FILE, 500, "api_error"},
                 {ERR_INTERNAL, 500, "api_error"}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct err err = {kinds[i].code, "x", "why"};
        struct buf out = {0}, want = {0};
        error_json(&out, &err);
        buf_printf(
            &want,
            "{\"error\":{\"message\":\"why\",\"type\":\"%s\",\"param\":\"x\",\"code\":null}}",
            kinds[i].type);
        EXPECT_STR(out.data, want.data);
        EXPECT_INT(error_status(&err), kinds[i].status);
        buf_free(&out);
        buf_free(&want);
    }
    struct err broken = {ERR_INVALID, "\xc3", "cut \xe2\x98"};
    struct buf out = {0};
    error_json(&out, &broken);
    EXPECT_STR(out.data, "{\"error\":{\"message\":\"cut \xef\xbf\xbd\",\"type\":"
                         "\"invalid_request_error\",\"param\":\"\xef\xbf\xbd\",\"code\":null}}");
    buf_free(&out);
}

static void expect_answer(enum job_kind kind, const struct event *const *events, const char *want)
{
    struct answer *a = answer_open(kind);
    struct buf out = {0};
    for (; *events; events++)
        answer_add(a, *events);
    answer_json(a, &out);
    EXPECT_STR(out.data, want);
    json_t *json = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
    EXPECT(json != NULL);
    json_decref(json);
    buf_free(&out);
    answer_close(a);
}

static void test_answers(void)
{
    const struct event *all[] = {&start, &step, &step, &resample, &sample, &sample, &done, NULL};
    const struct event *few[] = {&start, &done, NULL};
    const struct event *broken[] = {&start, &step, &failed, NULL};
    const struct event *scores[] = {&start, &score, &score_full, &done, NULL};
    expect_answer(JOB_SAMPLE, all,
                  "{\"id\":\"smp-1\",\"model\":\"tiny\",\"particles\":64,"
                  "\"seed\":-9223372036854775808,\"prompt_tokens\":5,"
                  "\"steps\":[{\"step\":12,\"active\":60,\"ess\":41.25,\"log_z\":-3.21},"
                  "{\"step\":12,\"active\":60,\"ess\":41.25,\"log_z\":-3.21}],"
                  "\"resamples\":[{\"step\":13,\"ess\":20.1,\"ancestors\":[5,0,319]}],"
                  "\"samples\":[{" SAMPLE_MEMBERS "},{" SAMPLE_MEMBERS "}]," DONE_MEMBERS "}");
    expect_answer(JOB_SAMPLE, few,
                  "{\"id\":\"smp-1\",\"model\":\"tiny\",\"particles\":64,"
                  "\"seed\":-9223372036854775808,\"prompt_tokens\":5,"
                  "\"steps\":[],\"resamples\":[],\"samples\":[]," DONE_MEMBERS "}");
    expect_answer(JOB_SAMPLE, broken,
                  "{\"error\":{\"message\":\"the device failed\",\"type\":\"api_error\","
                  "\"param\":null,\"code\":null}}");
    expect_answer(JOB_SCORE, scores,
                  "{\"results\":[{\"index\":0,\"log_p\":-1.5,\"tokens\":[5,0]},"
                  "{\"index\":1,\"log_p\":-1.5,\"log_phi\":null,\"log_twist\":[-0.5,null],"
                  "\"tokens\":[5,0],\"token_log_p\":[-0.5,null]}]," USAGE "}");
    const struct event *bounds[] = {&start, &lower, &upper, &bounds_done, NULL};
    const struct event *learned[] = {&start, &lower, &update,     &update,
                                     &lower, &upper, &learn_done, NULL};
    const struct event *unlearned[] = {&start, &update, &failed, NULL};
    expect_answer(JOB_BOUNDS, bounds,
                  "{" START_MEMBERS ",\"bounds\":[" LOWER "," UPPER "]," BOUNDS_MEMBERS "}");
    expect_answer(JOB_LEARN, learned,
                  "{" START_MEMBERS ",\"history\":[" UPDATE "," UPDATE "],"
                  "\"bounds\":[" LOWER "," LOWER "," UPPER "]," LEARN_MEMBERS "}");
    expect_answer(JOB_LEARN, unlearned,
                  "{\"error\":{\"message\":\"the device failed\",\"type\":\"api_error\","
                  "\"param\":null,\"code\":null}}");
    answer_close(NULL);
}

static void test_models(const struct engine_info *info)
{
    struct buf out = {0};
    models_json(&out, info);
    EXPECT_STR(out.data, "{\"object\":\"list\",\"data\":[{\"id\":\"tiny\",\"object\":\"model\","
                         "\"created\":1700000000,\"owned_by\":\"clotho\",\"meta\":{"
                         "\"context\":128,\"vocab\":320,\"parameters\":12345}}]}");
    buf_free(&out);
}

#define TWIST_MEMBERS                                                                              \
    "\"id\":\"happy\",\"object\":\"twist\",\"created\":1700000000,\"model\":\"m\xef\xbf\xbd\","    \
    "\"method\":\"dpg\",\"head\":{\"type\":\"mlp\",\"hidden\":768,\"layers\":3},"                  \
    "\"conditional\":false,\"resample\":false,\"max_tokens\":2,\"particles\":64,"                  \
    "\"updates\":100,\"learning_rate\":0.001,\"seed\":-1,\"log_z\":null,\"bytes\":4294967296"

static void expect_twist(const struct twist_file *f, const char *want)
{
    struct buf out = {0};
    twist_json(&out, f);
    EXPECT_STR(out.data, want);
    buf_free(&out);
}

static void test_twists(void)
{
    static const float calibration[] = {0.5F, -0.25F};
    struct twist_file list[2] = {{.spec = {.name = "happy",
                                           .model = "m\xc3",
                                           .n_layers = 3,
                                           .hidden = 768,
                                           .max_tokens = 2,
                                           .method = TWIST_DPG,
                                           .particles = 64,
                                           .updates = 100,
                                           .learning_rate = 0.001,
                                           .log_z = -INFINITY,
                                           .seed = UINT64_MAX},
                                  .created_unix = 1700000000,
                                  .bytes = (size_t)1 << 32}};
    list[1] = list[0];
    list[1].spec.n_layers = 1;
    list[1].spec.conditional = list[1].spec.resample = true;
    list[1].spec.log_z = -2;
    struct buf out = {0};
    twists_json(&out, list, 2);
    EXPECT_STR(out.data,
               "{\"object\":\"list\",\"data\":[{" TWIST_MEMBERS "},"
               "{\"id\":\"happy\",\"object\":\"twist\",\"created\":1700000000,"
               "\"model\":\"m\xef\xbf\xbd\",\"method\":\"dpg\",\"head\":{\"type\":\"linear\"},"
               "\"conditional\":true,\"resample\":true,\"max_tokens\":2,\"particles\":64,"
               "\"updates\":100,\"learning_rate\":0.001,\"seed\":-1,\"log_z\":-2,"
               "\"bytes\":4294967296}]}");
    buf_reset(&out);
    twists_json(&out, NULL, 0);
    EXPECT_STR(out.data, "{\"object\":\"list\",\"data\":[]}");
    buf_reset(&out);
    twist_removed_json(&out, "happy");
    EXPECT_STR(out.data, "{\"id\":\"happy\",\"object\":\"twist\",\"deleted\":true}");
    buf_free(&out);
    expect_twist(list, "{" TWIST_MEMBERS "}");
    list[0].spec.request = "{\"b\":[0.1, 2],\"a\":null}";
    list[0].spec.calibration = calibration;
    expect_twist(list, "{" TWIST_MEMBERS ",\"request\":{\"b\":[0.1,2],\"a\":null},"
                       "\"calibration\":[0.5,-0.25]}");
    list[0].spec.request = "{\"cut\":";
    list[0].spec.calibration = NULL;
    expect_twist(list, "{" TWIST_MEMBERS ",\"request\":null}");
}

/* A locale with another decimal point leaves the bytes alone. Skipped where there is none. */
static void test_locale(void)
{
    if (!setlocale(LC_ALL, "de_DE.UTF-8"))
        return;
    expect_event(&step, "{\"event\":\"step\",\"step\":12,\"active\":60,\"ess\":41.25,"
                        "\"log_z\":-3.21}");
    setlocale(LC_ALL, "C");
}

/* ---- the description ---- */

static int ask(const char *request, const char *body, const struct engine_info *info,
               struct err *err)
{
    struct request_opts opts;
    struct job *j = NULL;
    char *answer = NULL;
    size_t len = strlen(body);
    int rc = -1;
    if (!strcmp(request, "SampleRequest"))
        rc = request_sample(&j, &opts, body, len, info, err);
    else if (!strcmp(request, "ScoreRequest"))
        rc = request_score(&j, body, len, info, err);
    else if (!strcmp(request, "BoundsRequest"))
        rc = request_bounds(&j, &opts, body, len, info, err);
    else if (!strcmp(request, "LearnRequest"))
        rc = request_learn(&j, &opts, body, len, info, err);
    else if (!strcmp(request, "TokenizeRequest"))
        rc = (answer = request_tokenize(body, len, info, err)) ? 0 : -1;
    else
        rc = (answer = request_detokenize(body, len, info, err)) ? 0 : -1;
    job_free(j);
    free(answer);
    return rc;
}

/* Are the fields that a refusal lists exactly the schema's properties? */
static void expect_same_fields(const char *name, const json_t *schema, const char *refusal)
{
    const char *list = strstr(refusal, "(known: "), *field;
    const json_t *properties = json_object_get(schema, "properties");
    json_t *value;
    struct buf padded = {0};
    size_t commas = 0;
    EXPECT(list && properties && strchr(list, ')'));
    if (!list || !properties)
        return;
    buf_printf(&padded, ", %.*s, ", (int)strcspn(list + 8, ")"), list + 8);
    for (const char *p = padded.data; (p = strchr(p + 1, ','));)
        commas++;
    json_object_foreach((json_t *)properties, field, value)
    {
        struct buf word = {0};
        buf_printf(&word, ", %s, ", field);
        if (!strstr(padded.data, word.data)) {
            fprintf(stderr, "%s.%s: described, but not known to the parser\n", name, field);
            check_failures++;
        }
        buf_free(&word);
    }
    if (commas != json_object_size(properties)) {
        fprintf(stderr, "%s: the parser knows %s, the description %zu fields\n", name, padded.data,
                json_object_size(properties));
        check_failures++;
    }
    buf_free(&padded);
}

/* body: a request with an unknown field where the schema's fields are expected. */
static void test_schema(const json_t *schemas, const char *name, const char *request,
                        const char *body, const struct engine_info *info)
{
    struct err err = {0};
    EXPECT_INT(ask(request, body, info, &err), -1);
    expect_same_fields(name, json_object_get(schemas, name), err.msg);
}

static void test_description(const struct engine_info *info)
{
    static const struct {
        const char *schema, *request, *body;
    } cases[] = {
        {"SampleRequest", "SampleRequest", "{\"?\":1}"},
        {"ScoreRequest", "ScoreRequest", "{\"?\":1}"},
        {"BoundsRequest", "BoundsRequest", "{\"?\":1}"},
        {"LearnRequest", "LearnRequest", "{\"?\":1}"},
        {"TokenizeRequest", "TokenizeRequest", "{\"?\":1}"},
        {"DetokenizeRequest", "DetokenizeRequest", "{\"?\":1}"},
        {"Resampling", "SampleRequest", "{\"resampling\":{\"?\":1}}"},
        {"NoTwist", "SampleRequest", "{\"twist\":{\"type\":\"none\",\"?\":1}}"},
        {"FactorTwist", "SampleRequest", "{\"twist\":{\"type\":\"factor\",\"?\":1}}"},
        {"PotentialTwist", "SampleRequest", "{\"twist\":{\"type\":\"potential\",\"?\":1}}"},
        {"LearnedTwist", "SampleRequest", "{\"twist\":{\"type\":\"learned\",\"?\":1}}"},
        {"Rejection", "BoundsRequest", "{\"targets\":{\"source\":\"rejection\",\"?\":1}}"},
        {"LinearHead", "LearnRequest", "{\"name\":\"a\",\"head\":{\"type\":\"linear\",\"?\":1}}"},
        {"MlpHead", "LearnRequest", "{\"name\":\"a\",\"head\":{\"type\":\"mlp\",\"?\":1}}"},
        {"Condition", "LearnRequest", "{\"name\":\"a\",\"condition\":{\"?\":1}}"},
        {"TextSegment", "SampleRequest", "{\"segments\":[{\"text\":\"a\",\"?\":1}]}"},
        {"ObserveSegment", "SampleRequest", "{\"segments\":[{\"observe\":\"a\",\"?\":1}]}"},
        {"SampleSegment", "SampleRequest", "{\"segments\":[{\"sample\":\"a\",\"?\":1}]}"},
        {"ContinuationPotential", "SampleRequest",
         "{\"potential\":{\"type\":\"continuation\",\"?\":1}}"},
        {"LexiconPotential", "SampleRequest", "{\"potential\":{\"type\":\"lexicon\",\"?\":1}}"},
        {"ContainsPotential", "SampleRequest", "{\"potential\":{\"type\":\"contains\",\"?\":1}}"},
        {"RegexPotential", "SampleRequest", "{\"potential\":{\"type\":\"regex\",\"?\":1}}"},
        {"JudgePotential", "SampleRequest", "{\"potential\":{\"type\":\"judge\",\"?\":1}}"},
        {"TokensPotential", "SampleRequest", "{\"potential\":{\"type\":\"tokens\",\"?\":1}}"},
        {"ClassifierPotential", "SampleRequest",
         "{\"potential\":{\"type\":\"classifier\",\"?\":1}}"},
        {"RewardPotential", "SampleRequest", "{\"potential\":{\"type\":\"reward\",\"?\":1}}"},
    };
    size_t len;
    const char *text = openapi_json(&len);
    json_error_t why;
    json_t *document = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    EXPECT(document != NULL);
    json_t *schemas = json_object_get(json_object_get(document, "components"), "schemas");
    EXPECT_STR(json_string_value(json_object_get(document, "openapi")), "3.1.0");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        test_schema(schemas, cases[i].schema, cases[i].request, cases[i].body, info);
    json_decref(document);
}

static void test_examples_of(const json_t *document, const char *path, const char *request,
                             const struct engine_info *info)
{
    const char *name;
    json_t *value, *examples = NULL;
    json_unpack((json_t *)document, "{s{s{s{s{s{s{s:o}}}}}}}", "paths", path, "post", "requestBody",
                "content", "application/json", "examples", &examples);
    EXPECT(json_object_size(examples) >= 2);
    json_object_foreach(examples, name, value)
    {
        struct err err = {0};
        char *body = json_dumps(json_object_get(value, "value"), 0);
        if (ask(request, body, info, &err)) {
            fprintf(stderr, "example %s of %s: %s\n", name, path, err.msg);
            check_failures++;
        }
        free(body);
    }
}

/* Every example of a request in the description is one. */
static void test_examples(const struct engine_info *info)
{
    size_t len;
    const char *text = openapi_json(&len);
    json_t *document = json_loadb(text, len, 0, NULL);
    test_examples_of(document, "/v1/sample", "SampleRequest", info);
    test_examples_of(document, "/v1/bounds", "BoundsRequest", info);
    test_examples_of(document, "/v1/twists", "LearnRequest", info);
    json_decref(document);
}

int main(void)
{
    struct tiny_info tiny;
    tiny_open(&tiny, TINY_BOS);
    test_events();
    test_study_events();
    test_edges();
    test_errors();
    test_answers();
    test_models(&tiny.info);
    test_twists();
    test_locale();
    test_description(&tiny.info);
    tiny.info.context = 2000; /* the examples are for larger models */
    test_examples(&tiny.info);
    tiny_close(&tiny);
    return test_failures();
}
