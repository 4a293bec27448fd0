/* Twists as files: what is saved is loaded again, and what is broken is refused in one line. */
#include <fcntl.h>
#include <math.h>

#include "../twist_folder.h"

/* ---- round trip ---- */

static void expect_round_trip(const struct twist *t)
{
    struct err err = {.msg = ""};
    struct twist *again = NULL;
    struct buf first = {0}, second = {0};
    char leaf[100];
    snprintf(leaf, sizeof leaf, "%s.safetensors", t->spec.name);
    EXPECT_INT(twist_save(t, folder, &err), 0);
    EXPECT_STR(err.msg, "");
    EXPECT_INT(twist_load(&again, folder, t->spec.name, &err), 0);
    EXPECT_STR(err.msg, "");
    expect_twist(again, t);
    get(leaf, &first);
    EXPECT_INT(twist_save(again, folder, &err), 0);
    get(leaf, &second);
    EXPECT(first.len == second.len && !memcmp(first.data, second.data, first.len));
    uint64_t header;
    memcpy(&header, first.data, sizeof header);
    EXPECT_INT(header % 8, 0);
    drop(leaf);
    buf_free(&first);
    buf_free(&second);
    twist_free(again);
}

static void test_round_trip(void)
{
    struct twist *t = sample_twist();
    expect_round_trip(t);
    t->spec.log_z = -INFINITY;
    t->spec.learning_rate = 0;
    t->spec.seed = 0;
    snprintf(t->spec.name, sizeof t->spec.name, "%064d", 7);
    expect_round_trip(t);
    twist_free(t);

    for (int method = TWIST_CTL; method <= TWIST_DPG; method++)
        for (int layers = 1; layers <= TWIST_LAYERS_MAX; layers++) {
            struct twist_spec spec = {.name = "a.b-c_D9", .dim = 1, .vocab = 1, .max_tokens = 1};
            spec.method = (enum twist_method)method;
            spec.n_layers = layers;
            spec.hidden = layers == 1 ? 0 : 2;
            t = twist_new(&spec);
            twist_init(t, t->spec.n_layers, (uint64_t)layers);
            expect_round_trip(t);
            twist_free(t);
        }
}

static void test_describe(void)
{
    struct twist *t = sample_twist();
    struct twist_file file;
    struct arena arena = {0};
    struct err err;
    EXPECT_INT(twist_save(t, folder, &err), 0);
    EXPECT_INT(twist_describe(&file, &arena, folder, t->spec.name, &err), 0);
    expect_spec(&file.spec, &t->spec);
    EXPECT_STR(file.spec.request, t->spec.request);
    for (int i = 0; i < t->spec.max_tokens; i++)
        EXPECT(file.spec.calibration[i] == t->spec.calibration[i]);
    arena_free(&arena);
    EXPECT_INT(twist_remove(folder, t->spec.name, &err), 0);
    twist_free(t);
}

/* A model may be called by bytes that are no text; the file has text, as much as fits. */
static void test_model_name(void)
{
    struct twist *t = sample_twist(), *again = NULL;
    struct err err;
    memset(t->spec.model, 0xff, sizeof t->spec.model - 1);
    EXPECT_INT(twist_save(t, folder, &err), 0);
    EXPECT_INT(twist_load(&again, folder, "sample", &err), 0);
    EXPECT_INT(strlen(again->spec.model), 126);
    EXPECT(!strncmp(again->spec.model, "\xef\xbf\xbd\xef\xbf\xbd", 6));
    twist_free(again);
    twist_free(t);
}

static void test_init(void)
{
    struct twist_spec spec = {.name = "i", .dim = 31, .vocab = 301, .n_layers = 3, .hidden = 101};
    spec.max_tokens = 1;
    struct twist *a = twist_new(&spec), *b = twist_new(&spec);
    EXPECT(a->w[0][0] == 0 && a->b[2][300] == 0 && !a->spec.calibration && !a->spec.request);
    b->b[0][5] = 1;
    twist_init(a, a->spec.n_layers, 1);
    twist_init(b, b->spec.n_layers, 1);
    expect_twist(a, b);
    double first = 0;
    for (int l = 0; l < spec.n_layers; l++) {
        int in = twist_in(&spec, l), out = twist_out(&spec, l), n = in * out;
        double variance = 2.0 / (in + out), sum = 0, squares = 0, fourth = 0;
        for (int i = 0; i < n; i++) {
            double x = a->w[l][i] / sqrt(variance);
            sum += x;
            squares += x * x;
            fourth += x * x * x * x;
        }
        EXPECT_NEAR(sum / n, 0, 5 / sqrt(n)); /* five standard errors each */
        EXPECT_NEAR(squares / n, 1, 5 * sqrt(2.0 / n));
        EXPECT_NEAR(fourth / n, 3, 5 * sqrt(96.0 / n));
        EXPECT(fabs(a->w[l][0] / sqrt(variance) - first) > 1e-4); /* not the layer's before */
        first = a->w[l][0] / sqrt(variance);
    }
    twist_init(b, b->spec.n_layers, 2);
    EXPECT(a->w[0][0] != b->w[0][0]);
    twist_free(a);
    twist_free(b);
    twist_free(NULL);
}

static void test_names(void)
{
    char longest[TWIST_NAME_MAX + 2];
    memset(longest, 'x', sizeof longest - 1);
    longest[TWIST_NAME_MAX + 1] = '\0';
    EXPECT(!twist_name_ok(longest) && twist_name_ok(longest + 1));
    EXPECT(twist_name_ok("a") && twist_name_ok("9.x_-") && twist_name_ok("A..b"));
    EXPECT(!twist_name_ok("") && !twist_name_ok(".a") && !twist_name_ok("-a"));
    EXPECT(!twist_name_ok("a/b") && !twist_name_ok("a b") && !twist_name_ok("ä"));
    EXPECT(!twist_name_ok("..") && !twist_name_ok("a\n"));
}

static void test_model(void)
{
    struct twist_spec spec = sample_spec();
    struct err err;
    EXPECT_INT(twist_check_model(&spec, "0123456789abcdef", 3, 5, &err), 0);
    EXPECT_INT(twist_check_model(&spec, "0123456789abcdef", 4, 5, &err), -1);
    EXPECT_INT(twist_check_model(&spec, "0123456789abcdef", 3, 6, &err), -1);
    EXPECT_INT(twist_check_model(&spec, "0123456789abcdee", 3, 5, &err), -1);
    EXPECT_INT(err.code, ERR_INVALID);
    EXPECT_STR(err.param, "twist.name");
    EXPECT_STR(err.msg, "twist.name: \"sample\" was learned for the model \"tiny \"модель\"\" "
                        "(0123456789abcdef), not for this one (0123456789abcdee)");
}

/* ---- broken files ---- */

/* The file broken.safetensors is refused, by the header already if `early`; with `why` in the one
 * line. */
static void expect_broken(const char *why, bool early)
{
    char start[200];
    struct twist *t = NULL;
    struct twist_file file;
    struct err err = {.msg = ""};
    path_of(start, "broken.safetensors: ");
    EXPECT_INT(twist_load(&t, folder, "broken", &err), -1);
    EXPECT(!t && err.code == ERR_FILE && !strchr(err.msg, '\n'));
    if (strncmp(err.msg, start, strlen(start)) != 0)
        EXPECT_STR(err.msg, start);
    if (!strstr(err.msg, why))
        EXPECT_STR(err.msg, why);
    EXPECT_INT(twist_stat(&file, folder, "broken", &err), early ? -1 : 0);
}

/* The sample's file with the first `from` of its header replaced. */
static void put_edited(const struct buf *file, const char *from, const char *to)
{
    struct buf out = {0};
    uint64_t len;
    memcpy(&len, file->data, sizeof len);
    const char *header = file->data + sizeof len;
    const char *at = memmem(header, len, from, strlen(from));
    EXPECT(at != NULL);
    if (!at)
        EXPECT_STR("", from);
    size_t before = at ? (size_t)(at - header) : 0;
    uint64_t edited = len - strlen(from) + strlen(to);
    buf_add(&out, &edited, sizeof edited);
    buf_add(&out, header, before);
    buf_puts(&out, to);
    buf_add(&out, header + before + strlen(from), file->len - 8 - before - strlen(from));
    put("broken.safetensors", out.data, out.len);
    buf_free(&out);
}

static void test_broken_headers(const struct buf *file)
{
    /* The sample: layer.0.weight (4, 6) at 0, bias (4) at 96, layer.1.weight (5, 4) at 112, bias
     * (5) at 192, calibration (4) at 212; 228 bytes in all. */
    static const struct {
        const char *from, *to, *why;
    } cases[] = {
        {"{\"__metadata__\"", "[{\"__metadata__\"", "not a safetensors file"},
        {"{\"__metadata__\"", " {\"__metadata__\"", "not a safetensors file"},
        {"{\"__metadata__\"", "{]\"__metadata__\"", "the header is not JSON"},
        {"{\"__metadata__\"", "{\"x\":1,\"__metadata__\"", "tensor \"x\" has the unknown dtype"},
        {"\"__metadata__\":{", "\"__metadata__\":[],\"m\":{", "__metadata__ is not an object"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\\nb\":1,", "\"a b\" of __metadata__ is not"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"dim\":\"3\",", "duplicate"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\":\"\\u0000\",", "the header is not JSON"},
        {"\"__metadata__\":{", "\"__metadata__\":{\"a\":\"\xff\",", "the header is not JSON"},
        {"\"format\"", "\"forma\"", "not a twist"},
        {"clotho-twist-1", "clotho-twist-2", "not a twist"},
        {"\"model\"", "\"mode\"", "the metadata lack \"model\""},
        {"\"log_z\"", "\"logz\"", "the metadata lack \"log_z\""},
        {"\"0123456789abcdef\"", "\"0123456789abcdef0\"", "\"fingerprint\" cannot be"},
        {"\"dim\":\"3\"", "\"dim\":\"0\"", "\"dim\" cannot be \"0\""},
        {"\"dim\":\"3\"", "\"dim\":\"\"", "\"dim\" cannot be \"\""},
        {"\"dim\":\"3\"", "\"dim\":\"3x\"", "\"dim\" cannot be \"3x\""},
        {"\"dim\":\"3\"", "\"dim\":\" 3\"", "\"dim\" cannot be \" 3\""},
        {"\"dim\":\"3\"", "\"dim\":\"-3\"", "\"dim\" cannot be \"-3\""},
        {"\"dim\":\"3\"", "\"dim\":\"65537\"", "\"dim\" cannot be \"65537\""},
        {"\"dim\":\"3\"", "\"dim\":\"4294967299\"", "\"dim\" cannot be \"4294967299\""},
        {"\"dim\":\"3\"", "\"dim\":\"99999999999999999999\"", "\"dim\" cannot be"},
        {"\"dim\":\"3\"", "\"dim\":\"4\"", "\"layer.0.weight\" has not the shape"},
        {"\"vocab\":\"5\"", "\"vocab\":\"1048577\"", "\"vocab\" cannot be \"1048577\""},
        {"\"layers\":\"2\"", "\"layers\":\"9\"", "\"layers\" cannot be \"9\""},
        {"\"layers\":\"2\"", "\"layers\":\"3\"", "\"layer.1.weight\" has not the shape"},
        {"\"layers\":\"2\"", "\"layers\":\"1\"", "\"layer.0.weight\" has not the shape"},
        {"\"hidden\":\"4\"", "\"hidden\":\"16385\"", "\"hidden\" cannot be \"16385\""},
        {"\"hidden\":\"4\"", "\"hidden\":\"0\"", "\"hidden\" cannot be \"0\""},
        {"\"conditional\":\"true\"", "\"conditional\":\"yes\"", "\"conditional\" cannot be"},
        {"\"conditional\":\"true\"", "\"conditional\":\"false\"", "has not the shape"},
        {"\"log_sigmoid\"", "\"tanh\"", "\"activation\" cannot be \"tanh\""},
        {"\"max_tokens\":\"4\"", "\"max_tokens\":\"0\"", "\"max_tokens\" cannot be \"0\""},
        {"\"max_tokens\":\"4\"", "\"max_tokens\":\"5\"", "\"calibration\" has not the shape"},
        {"\"fudge\"", "\"nvi\"", "\"method\" cannot be \"nvi\""},
        {"\"updates\":\"200\"", "\"updates\":\"1e3\"", "\"updates\" cannot be \"1e3\""},
        {"\"learning_rate\":\"3e-05\"", "\"learning_rate\":\"nan\"", "cannot be \"nan\""},
        {"\"learning_rate\":\"3e-05\"", "\"learning_rate\":\"inf\"", "cannot be \"inf\""},
        {"\"learning_rate\":\"3e-05\"", "\"learning_rate\":\"-1\"", "cannot be \"-1\""},
        {"\"seed\":\"18446744073709551615\"", "\"seed\":\"18446744073709551616\"", "\"seed\""},
        {"\"seed\":\"18446744073709551615\"", "\"seed\":\"-1\"", "\"seed\" cannot be \"-1\""},
        {"\"log_z\":\"-", "\"log_z\":\"inf", "\"log_z\" cannot be"},
        {"\"log_z\":\"-", "\"log_z\":\"nan", "\"log_z\" cannot be"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F33\"", "the unknown dtype \"F33\""},
        {"\"dtype\":\"F32\"", "\"dtype\":32", "the unknown dtype"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F64\"", "has 96 bytes of data, its shape comes to 192"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"I32\"", "\"layer.0.weight\" is I32, not F32"},
        {"[4,6]", "[4,7]", "has 96 bytes of data, its shape comes to 112"},
        {"[4,6]", "[6,4]", "\"layer.0.weight\" has not the shape"},
        {"[4,6]", "[24]", "\"layer.0.weight\" has not the shape"},
        {"[4,6]", "[4,6,1]", "\"layer.0.weight\" has not the shape"},
        {"[4,6]", "24", "an impossible shape"},
        {"[4,6]", "[4,-6]", "an impossible shape"},
        {"[4,6]", "[4,6.0]", "an impossible shape"},
        {"[4,6]", "[1,1,1,1,1,1,1,4,6]", "an impossible shape"},
        {"[4,6]", "[4294967296,4294967296]", "an impossible shape"},
        {"[4,6]", "[4294967296,4294967297]", "an impossible shape"},
        {"[4,6]", "[4,99999999999999999999]", "the header is not JSON"},
        {"[0,96]", "[0]", "impossible data_offsets"},
        {"[0,96]", "[96,0]", "impossible data_offsets"},
        {"[0,96]", "[-96,0]", "impossible data_offsets"},
        {"[0,96]", "[0,96,112]", "impossible data_offsets"},
        {"[0,96]", "[0,100]", "has 100 bytes of data, its shape comes to 96"},
        {"[0,96]", "[4,100]", "\"layer.0.weight\" leaves a gap before it"},
        {"[96,112]", "[92,108]", "\"layer.0.bias\" overlaps another"},
        {"[96,112]", "[100,116]", "\"layer.0.bias\" leaves a gap before it"},
        {"[96,112]", "[0,16]", "overlaps another"},
        {"[212,228]", "[9223372036854775791,9223372036854775807]", "leaves a gap before it"},
        {"[212,228]", "[212,232]", "has 20 bytes of data"},
        {"\"layer.1.bias\"", "\"layer.0.bias\"", "duplicate"},
        {"\"layer.1.bias\"", "\"layer.2.bias\"", "lacks tensor \"layer.1.bias\""},
        {"\"calibration\"", "\"calibrations\"", "has 5 tensors, not 4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_edited(file, cases[i].from, cases[i].to);
        expect_broken(cases[i].why, true);
    }
}

static void test_truncated(const struct buf *file)
{
    for (size_t n = 0; n < file->len; n++) {
        put("broken.safetensors", file->data, n);
        expect_broken("truncated", true);
    }
    struct buf longer = {0};
    buf_add(&longer, file->data, file->len);
    buf_puts(&longer, "!");
    put("broken.safetensors", longer.data, longer.len);
    expect_broken("has 1 bytes after its last tensor", true);
    buf_free(&longer);
}

static void test_foreign(const struct buf *file)
{
    struct buf other = {0};
    put("broken.safetensors", "GGUF\3\0\0\0 and so on", 18);
    expect_broken("not a safetensors file", true);
    put("broken.safetensors", "\0\0\0\0\0\0\0\0", 8);
    expect_broken("not a safetensors file", true);
    put("broken.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    expect_broken("not a twist", true);
    put("broken.safetensors", "\1\0\0\2\0\0\0\0{", 9); /* a header of 32 MB and a byte */
    expect_broken("a header of over", true);
    put("broken.safetensors", "\0\0\0\2\0\0\0\0{", 9);
    expect_broken("truncated", true);
    buf_add(&other, file->data, file->len);
    memset(other.data, 0xff, 8);
    put("broken.safetensors", other.data, other.len);
    expect_broken("not a safetensors file", true);
    buf_free(&other);
}

static void test_not_finite(const struct buf *file)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const struct {
        size_t from_end;
        const char *why;
    } places[] = {
        {228, "layer.0.weight"}, {132, "layer.0.bias"}, {20, "layer.1.bias"}, {4, "calibration"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
            struct buf edited = {0};
            buf_add(&edited, file->data, file->len);
            memcpy(edited.data + file->len - places[k].from_end, &bad[i], 4);
            put("broken.safetensors", edited.data, edited.len);
            expect_broken(places[k].why, false);
            expect_broken("not finite", false);
            buf_free(&edited);
        }
}

static void test_broken(void)
{
    struct twist *t = sample_twist();
    struct buf file = {0};
    struct err err;
    EXPECT_INT(twist_save(t, folder, &err), 0);
    get("sample.safetensors", &file);
    test_broken_headers(&file);
    test_truncated(&file);
    test_foreign(&file);
    test_not_finite(&file);
    drop("broken.safetensors");
    buf_free(&file);
    twist_free(t);
}

/* ---- the folder ---- */

static void save_as(const char *name, int updates)
{
    struct twist *t = sample_twist();
    struct err err;
    snprintf(t->spec.name, sizeof t->spec.name, "%s", name);
    t->spec.updates = updates;
    EXPECT_INT(twist_save(t, folder, &err), 0);
    twist_free(t);
}

static void test_list(void)
{
    static const char *const names[] = {"A", "B", "a", "a-1", "a.safetensors", "a_1", "b", "c"};
    static const int order[] = {6, 2, 0, 7, 4, 1, 5, 3};
    enum { N = sizeof names / sizeof *names };
    struct twist_file *list = NULL;
    struct err err;
    for (int i = 0; i < N; i++)
        save_as(names[order[i]], order[i]);
    put("broken.safetensors", "{", 1);
    put(".hidden.safetensors", "{", 1);
    put("a.gguf", "{", 1);
    put(".safetensors", "{", 1);
    EXPECT_INT(twist_list(&list, folder, &err), N);
    for (int i = 0; i < N; i++) {
        EXPECT_STR(list[i].spec.name, names[i]);
        EXPECT_INT(list[i].spec.updates, i);
        EXPECT_INT(twist_remove(folder, names[i], &err), 0);
    }
    free(list);
    EXPECT_INT(twist_list(&list, folder, &err), 0);
    free(list);
    drop("broken.safetensors");
    drop(".hidden.safetensors");
    drop("a.gguf");
    drop(".safetensors");
}

/* Another file with the old one's inode, size and time. */
static void replace_in_place(void)
{
    struct buf file = {0};
    struct stat st;
    char path[200];
    path_of(path, "a.safetensors");
    EXPECT(stat(path, &st) == 0);
    get("a.safetensors", &file);
    char *updates = memmem(file.data, file.len, "\"updates\":\"4\"", 13);
    EXPECT(updates != NULL);
    updates[11] = '5';
    put("a.safetensors", file.data, file.len);
    EXPECT(utimensat(AT_FDCWD, path, (struct timespec[]){st.st_atim, st.st_mtim}, 0) == 0);
    buf_free(&file);
}

static void test_stat(void)
{
    struct twist_spec want = sample_spec();
    struct twist_file before, after;
    struct err err;
    save_as("a", 4);
    snprintf(want.name, sizeof want.name, "a");
    want.updates = 4;
    EXPECT_INT(twist_stat(&before, folder, "a", &err), 0);
    expect_spec(&before.spec, &want);
    EXPECT(!before.spec.request && !before.spec.calibration && before.bytes > 228);
    EXPECT(before.created_unix > 1700000000);
    EXPECT(twist_stat(&after, folder, "a", &err) == 0 && after.identity == before.identity);
    replace_in_place();
    EXPECT(twist_stat(&after, folder, "a", &err) == 0 && after.identity != before.identity);
    EXPECT(after.spec.updates == 5 && after.created_unix == before.created_unix);
    save_as("a", 4);
    EXPECT(twist_stat(&after, folder, "a", &err) == 0 && after.identity != before.identity);
    EXPECT_INT(twist_remove(folder, "a", &err), 0);
}

static void expect_missing(const char *name)
{
    struct twist *t = NULL;
    struct twist_file file;
    struct err err;
    EXPECT(twist_load(&t, folder, name, &err) == -1 && err.code == ERR_NOT_FOUND && !t);
    EXPECT(strstr(err.msg, name) != NULL);
    EXPECT(twist_stat(&file, folder, name, &err) == -1 && err.code == ERR_NOT_FOUND);
    EXPECT(twist_remove(folder, name, &err) == -1 && err.code == ERR_NOT_FOUND);
}

static void test_missing(void)
{
    struct twist_file file, *list;
    struct twist *t = sample_twist(), *none;
    struct err err;
    char path[200];
    expect_missing("nothing");
    expect_missing("../etc");
    EXPECT(twist_stat(&file, "/nowhere", "a", &err) == -1 && err.code == ERR_FILE);
    EXPECT_STR(err.msg, "/nowhere: No such file or directory");
    EXPECT(twist_load(&none, "/nowhere", "a", &err) == -1 && err.code == ERR_FILE);
    EXPECT(twist_list(&list, "/nowhere", &err) == -1 && err.code == ERR_FILE);
    EXPECT(twist_remove("/nowhere", "a", &err) == -1 && err.code == ERR_FILE);
    EXPECT(twist_save(t, "/nowhere", &err) == -1 && err.code == ERR_FILE);
    EXPECT_STR(err.msg, "/nowhere: No such file or directory");
    path_of(path, "folder.safetensors");
    EXPECT(mkdir(path, 0700) == 0);
    EXPECT(twist_load(&none, folder, "folder", &err) == -1 && err.code == ERR_FILE);
    EXPECT(strstr(err.msg, "not a regular file") != NULL);
    EXPECT(twist_remove(folder, "folder", &err) == -1 && err.code == ERR_FILE);
    snprintf(t->spec.name, sizeof t->spec.name, "folder");
    EXPECT(twist_save(t, folder, &err) == -1 && err.code == ERR_FILE);
    EXPECT_INT(hidden_files(), 0);
    EXPECT(rmdir(path) == 0);
    path_of(path, "pipe.safetensors");
    EXPECT(mkfifo(path, 0600) == 0);
    EXPECT(twist_load(&none, folder, "pipe", &err) == -1 && err.code == ERR_FILE);
    EXPECT(unlink(path) == 0);
    twist_free(t);
}

int main(void)
{
    EXPECT(mkdtemp(folder) != NULL);
    test_round_trip();
    test_describe();
    test_model_name();
    test_init();
    test_names();
    test_model();
    test_broken();
    test_missing();
    drop("sample.safetensors");
    test_list();
    test_stat();
    EXPECT(rmdir(folder) == 0);
    return test_failures();
}
