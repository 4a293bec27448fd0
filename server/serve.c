/* clotho serve: up, watch, down. The main thread does no work but this.
 *
 * The port is bound first, so that a taken one is known before a model is loaded, and answers (503)
 * while the engine loads. On SIGTERM or SIGINT the engine refuses what is new, what runs may finish
 * until a deadline, then the streams are ended; libmicrohttpd, which aborts when it is stopped with
 * a suspended connection, goes next, and the engine, which streams call, last. A second signal
 * finds its default action. SIGHUP reloads. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../core/twist.h"
#include "commands.h"
#include "http.h"
#include "log.h"
#include "stream.h"

static const double watch_seconds = 1, loading_seconds = 0.02, poll_seconds = 0.02,
                    farewell_seconds = 2; /* to tell cancelled clients so */

static sigset_t stop_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    return set;
}

/* Those that the main thread waits for. */
static sigset_t awaited_signals(void)
{
    sigset_t set = stop_signals();
    sigaddset(&set, SIGHUP);
    return set;
}

static struct timespec duration(double seconds)
{
    return (struct timespec){(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
}

/* SIGHUP: what may change while the server runs is read again. Each request looks at its twist's
 * file, so that there a look at the folder is all: whether it can be read, and what is in it. */
static void reload(struct http *http, const struct config *c)
{
    struct err err;
    struct twist_file *files = NULL;
    if (http_reload(http, &err))
        log_line(LOG_ERROR, "SIGHUP: the keys stay as they were: %s", err.msg);
    if (!c->twist_dir)
        return;
    int n = twist_list(&files, c->twist_dir, &err);
    free(files);
    if (n < 0)
        log_line(LOG_ERROR, "SIGHUP: %s", err.msg);
    else
        log_line(LOG_INFO, "SIGHUP: %s has %d twists", c->twist_dir, n);
}

/* Did a stop signal come within this time? Then the next one kills. */
static bool is_stopped_within(double seconds, struct http *http, const struct config *c)
{
    sigset_t set = awaited_signals(), stop = stop_signals();
    struct timespec t = duration(seconds);
    int which = sigtimedwait(&set, NULL, &t);
    if (which == SIGHUP)
        reload(http, c);
    if (which <= 0 || which == SIGHUP)
        return false;
    pthread_sigmask(SIG_UNBLOCK, &stop, NULL);
    return true;
}

/* http_watch, if the last one is long enough ago; returns when the last one was. */
static double watch_if_due(struct http *http, double last)
{
    double now = stream_clock();
    if (now - last < watch_seconds)
        return last;
    http_watch(http);
    return now;
}

/* Wait for the requests in progress; returns how many are left. */
static int wait_for_calls(struct http *http, double seconds)
{
    double begun = stream_clock(), watched = begun;
    struct timespec pause = duration(poll_seconds);
    while (http_calls(http) > 0 && stream_clock() - begun < seconds) {
        nanosleep(&pause, NULL);
        watched = watch_if_due(http, watched);
    }
    return http_calls(http);
}

static void shut_down(struct http *http, double drain_seconds)
{
    http_quiesce(http);
    int left = wait_for_calls(http, drain_seconds);
    if (left == 0)
        return;
    log_line(LOG_WARN, "%d requests did not finish in time", left);
    http_cancel(http);
    wait_for_calls(http, farewell_seconds);
}

static void drain(struct http *http, struct engine *engine, int seconds)
{
    log_line(LOG_INFO, "stopping: %d requests in progress, %d s for them to finish",
             http_calls(http), seconds);
    engine_drain(engine);
    shut_down(http, seconds);
}

static void say_ready(const struct http *http, const struct engine *engine)
{
    const struct engine_info *info = engine_info(engine);
    if (info)
        log_line(LOG_ALWAYS, "ready on %s (%s, %.1f s)", http_url(http), info->model,
                 info->load_seconds);
}

static int report_failure(struct http *http, struct engine *engine)
{
    struct err err;
    engine_wait_ready(engine, &err);
    log_line(LOG_ERROR, "%s", err.msg);
    shut_down(http, farewell_seconds);
    return 1;
}

/* Until a signal (0) or the engine's failure (1). */
static int watch(struct http *http, struct engine *engine, const struct config *c)
{
    bool ready = false;
    double watched = stream_clock();
    while (!is_stopped_within(ready ? watch_seconds : loading_seconds, http, c)) {
        enum engine_state state = engine_state(engine);
        if (state == ENGINE_FAILED)
            return report_failure(http, engine);
        if (!ready && state == ENGINE_READY)
            say_ready(http, engine);
        ready = state == ENGINE_READY;
        watched = watch_if_due(http, watched);
    }
    if (engine_state(engine) == ENGINE_READY) /* maybe since the last look */
        drain(http, engine, c->drain_seconds);
    return 0;
}

static int serve(const struct config *c)
{
    struct http *http = NULL;
    struct engine *engine = NULL;
    struct err err;
    struct engine_opts opts = command_engine_opts(c);
    struct budget budget;
    int status = 1;
    budget_init(&budget, c->client_memory, c->max_connections);
    if (command_open_twists(c, false, &err) || http_open(&http, c, &budget, &err) ||
        engine_open(&engine, &opts, &err) || http_start(http, engine, &err))
        log_line(LOG_ERROR, "%s", err.msg);
    else
        status = watch(http, engine, c);
    http_close(http);
    engine_close(engine);
    return status;
}

int command_serve(int argc, char **argv)
{
    struct config c;
    sigset_t set = awaited_signals();
    int status = command_config(&c, CONFIG_SERVE, argc, argv);
    if (status < 0) {
        log_set_level(c.log_level);
        log_set_format(c.log_format);
        signal(SIGPIPE, SIG_IGN);
        signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error, not the end */
        pthread_sigmask(SIG_BLOCK, &set, NULL); /* before there are threads to inherit it */
        status = serve(&c);
    }
    config_free(&c);
    return status;
}
