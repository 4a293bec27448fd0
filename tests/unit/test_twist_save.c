/* Whatever happens while a twist is saved, a whole one is there: the old one or the new one. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "../../core/replace.h"
#include "../twist_folder.h"

static void expect_unsaved(struct twist *t, const char *why)
{
    struct err err;
    EXPECT(twist_save(t, folder, &err) == -1 && err.code == ERR_INVALID);
    if (!strstr(err.msg, why))
        EXPECT_STR(err.msg, why);
}

/* What could not be loaded is not saved. */
static void test_refused_save(void)
{
    struct twist *t = sample_twist(), *kept = NULL;
    struct err err;
    EXPECT_INT(twist_save(t, folder, &err), 0);
    t->b[1][4] = NAN;
    expect_unsaved(t, "layer.1.bias has numbers that are not finite");
    t->b[1][4] = INFINITY;
    expect_unsaved(t, "layer.1.bias");
    t->b[1][4] = 2;
    t->spec.log_z = NAN;
    expect_unsaved(t, "log_z is out of range");
    t->spec.log_z = INFINITY;
    expect_unsaved(t, "log_z is out of range");
    t->spec.log_z = sample_spec().log_z;
    t->spec.updates = -1;
    expect_unsaved(t, "updates is out of range");
    t->spec.updates = 200;
    EXPECT_INT(hidden_files(), 0);
    EXPECT_INT(twist_load(&kept, folder, "sample", &err), 0);
    expect_twist(kept, t);
    twist_free(kept);
    twist_free(t);
}

/* Runs in a process of its own: the exit status is that of the checks. */
static void in_child(void (*run)(void))
{
    int status = 1;
    pid_t pid = fork();
    if (pid == 0) {
        check_failures = 0;
        run();
        _exit(check_failures != 0);
    }
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

static void expect_save_fails(int code)
{
    struct twist *t = sample_twist();
    struct err err = {.msg = ""};
    char want[300];
    snprintf(want, sizeof want, "%s/sample.safetensors: %s", folder, strerror(code));
    t->spec.updates = 201;
    EXPECT(twist_save(t, folder, &err) == -1 && err.code == ERR_FILE);
    EXPECT_STR(err.msg, want);
    twist_free(t);
}

static void save_on_a_full_disk(void)
{
    struct twist_file file = {.bytes = 0};
    struct err err;
    EXPECT_INT(twist_stat(&file, folder, "sample", &err), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t size = 0; size < file.bytes; size += 97) {
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){size, RLIM_INFINITY});
        expect_save_fails(EFBIG);
    }
}

static void save_without_permission(void)
{
    if (geteuid() == 0 && (setgid(65534) || setuid(65534))) /* root may write everywhere */
        return;
    expect_save_fails(EACCES);
}

static void test_failing_save(void)
{
    struct twist *kept = NULL, *t = sample_twist();
    struct err err;
    EXPECT_INT(twist_save(t, folder, &err), 0);
    in_child(save_on_a_full_disk);
    EXPECT(chmod(folder, 0555) == 0);
    in_child(save_without_permission);
    EXPECT(chmod(folder, 0755) == 0);
    EXPECT_INT(hidden_files(), 0);
    EXPECT_INT(twist_load(&kept, folder, "sample", &err), 0);
    expect_twist(kept, t);
    twist_free(kept);
    twist_free(t);
}

/* ---- saving that is cut off, or crossed ---- */

enum { BIG_VOCAB = 20000, KILLS = 50 };

static struct twist *big_twist(int value)
{
    struct twist_spec spec = {.name = "big", .dim = 8, .vocab = BIG_VOCAB, .n_layers = 1};
    spec.max_tokens = 1;
    spec.updates = value;
    struct twist *t = twist_new(&spec);
    for (int i = 0; i < 8 * BIG_VOCAB; i++)
        t->w[0][i] = (float)value;
    return t;
}

static bool is_big(const struct twist *t)
{
    for (int i = 0; i < 8 * BIG_VOCAB; i++)
        if (t->w[0][i] != (float)t->spec.updates)
            return false;
    return t->spec.updates == 1 || t->spec.updates == 2;
}

static void expect_big_file(void)
{
    struct twist *t = NULL;
    struct err err = {.msg = ""};
    EXPECT_INT(twist_load(&t, folder, "big", &err), 0);
    EXPECT_STR(err.msg, "");
    EXPECT(t && is_big(t));
    twist_free(t);
}

static void save_big(int value)
{
    struct twist *t = big_twist(value);
    struct err err = {.msg = ""};
    EXPECT_INT(twist_save(t, folder, &err), 0);
    EXPECT_STR(err.msg, "");
    twist_free(t);
}

static void save_for_ever(void)
{
    struct twist *t[2] = {big_twist(1), big_twist(2)};
    struct err err;
    for (int i = 0;; i ^= 1)
        if (twist_save(t[i], folder, &err))
            _exit(1);
}

/* Each kill may leave one file, which the next child's first save removes. */
static void test_kills(void)
{
    int left = 0;
    srand(1);
    save_big(1);
    for (int i = 0; i < KILLS; i++) {
        pid_t pid = fork();
        if (pid == 0)
            save_for_ever();
        usleep((useconds_t)(3000 + rand() % 20000));
        kill(pid, SIGKILL);
        int status;
        EXPECT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
        expect_big_file();
        EXPECT(hidden_files() <= 1);
        left += hidden_files();
    }
    EXPECT(left > 0); /* else this test has not cut anything off */
    save_big(2);
    EXPECT_INT(hidden_files(), 0);
}

static void *save_often(void *arg)
{
    struct twist *t = big_twist(*(int *)arg);
    struct err err = {.msg = ""};
    for (int i = 0; i < 10; i++) {
        if (twist_save(t, folder, &err))
            fprintf(stderr, "%s\n", err.msg);
        if (err.msg[0])
            return arg;
    }
    twist_free(t);
    return NULL;
}

/* Threads and processes that save the same name do not remove what another one is writing. */
static void test_crossed(void)
{
    int values[] = {1, 2, 1, 2};
    pthread_t threads[4];
    pid_t pid = fork();
    if (pid == 0)
        _exit(save_often(&values[0]) != NULL);
    for (int i = 0; i < 4; i++)
        EXPECT(pthread_create(&threads[i], NULL, save_often, &values[i]) == 0);
    for (int i = 0; i < 20; i++)
        expect_big_file();
    for (int i = 0; i < 4; i++) {
        void *failed = NULL;
        EXPECT(pthread_join(threads[i], &failed) == 0 && !failed);
    }
    int status;
    EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
    expect_big_file();
    EXPECT_INT(hidden_files(), 0);
}

static void test_leftovers(void)
{
    struct replace live;
    struct err err;
    put(".big.safetensors.0123456789abcdef", "x", 1);
    put(".big.safetensors.0123456789abcdeF", "x", 1); /* none of ours */
    put(".bigger.safetensors.0123456789abcdef", "x", 1);
    EXPECT_INT(replace_begin(&live, folder, "big.safetensors", &err), 0);
    EXPECT_INT(hidden_files(), 3); /* the live one, and two that are not of this name */
    save_big(1);
    EXPECT_INT(hidden_files(), 3);
    EXPECT_INT(write(live.fd, "new", 3), 3);
    EXPECT_INT(replace_commit(&live, &err), 0);
    struct buf now = {0};
    get("big.safetensors", &now);
    EXPECT(now.len == 3 && !memcmp(now.data, "new", 3));
    buf_free(&now);
    put(".big.safetensors.0123456789abcdef", "x", 1);
    EXPECT_INT(twist_remove(folder, "big", &err), 0);
    EXPECT_INT(hidden_files(), 2);
    drop(".big.safetensors.0123456789abcdeF");
    drop(".bigger.safetensors.0123456789abcdef");
}

int main(void)
{
    EXPECT(mkdtemp(folder) && chmod(folder, 0755) == 0);
    test_refused_save();
    test_failing_save();
    drop("sample.safetensors");
    test_kills();
    test_crossed();
    test_leftovers();
    EXPECT(rmdir(folder) == 0);
    return test_failures();
}
