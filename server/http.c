#include "http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "call.h"
#include "link.h"
#include "log.h"
#include "routes.h"

enum {
    BACKLOG = 1024,
    SPARE_FILES = 64,
    CONNECTION_MEMORY = 32 << 10,
    SEND_BUFFER = 128 << 10, /* of the kernel, for each connection: left alone it grows to 4 MiB */
};

struct link {
    struct link *prev, *next;
    int fd;
    double send_by, read_by; /* 0: no deadline */
    struct stream *stream;
};

struct http {
    struct service service;
    int listener; /* a daemon that was told to accept no more may use it until it is stopped */
    char url[300];
    struct MHD_Daemon *daemon;

    pthread_mutex_t lock; /* of the following, and taken before a stream's */
    struct link *links;
    int n_links, n_calls;
};

/* ------------------------------------------------------- connections */

static void link_add(struct http *h, struct link *l)
{
    pthread_mutex_lock(&h->lock);
    l->next = h->links;
    if (l->next)
        l->next->prev = l;
    h->links = l;
    h->n_links++;
    pthread_mutex_unlock(&h->lock);
}

static void link_remove(struct http *h, struct link *l)
{
    pthread_mutex_lock(&h->lock);
    if (l->prev)
        l->prev->next = l->next;
    else
        h->links = l->next;
    if (l->next)
        l->next->prev = l->prev;
    h->n_links--;
    pthread_mutex_unlock(&h->lock);
    free(l);
}

void link_must_send(struct http *h, struct link *l, double by)
{
    pthread_mutex_lock(&h->lock);
    l->send_by = by;
    l->read_by = 0;
    pthread_mutex_unlock(&h->lock);
}

void link_must_read(struct http *h, struct link *l, double by)
{
    pthread_mutex_lock(&h->lock);
    l->send_by = 0;
    l->read_by = by;
    pthread_mutex_unlock(&h->lock);
}

void link_set_stream(struct http *h, struct link *l, struct stream *s)
{
    pthread_mutex_lock(&h->lock);
    l->stream = s;
    pthread_mutex_unlock(&h->lock);
}

void http_count_call(struct http *h, int more)
{
    pthread_mutex_lock(&h->lock);
    h->n_calls += more;
    pthread_mutex_unlock(&h->lock);
}

void http_count(struct http *h, int *connections, int *calls)
{
    pthread_mutex_lock(&h->lock);
    *connections = h->n_links;
    *calls = h->n_calls;
    pthread_mutex_unlock(&h->lock);
}

static bool is_hung_up(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) == 1;
}

/* A connection that should be sending a request. One that has shut its side will never send the
 * rest: it goes at the next look, as what it did send may be on its way through. */
static void watch_sender(struct link *l, double now)
{
    if (now > l->send_by)
        shutdown(l->fd, SHUT_RDWR);
    else if (is_hung_up(l->fd))
        l->send_by = now;
}

void http_watch(struct http *h)
{
    double now = stream_clock();
    pthread_mutex_lock(&h->lock);
    for (struct link *l = h->links; l; l = l->next) {
        if (l->send_by > 0)
            watch_sender(l, now);
        if (l->read_by > 0 && now > l->read_by)
            shutdown(l->fd, SHUT_RDWR);
        if (l->stream)
            stream_watch(l->stream, now);
    }
    pthread_mutex_unlock(&h->lock);
}

/* ------------------------------------------------------- libmicrohttpd's callbacks */

static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http *h = cls;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        link_remove(h, *context);
        return;
    }
    struct link *l = calloc(1, sizeof *l);
    CHECK(l && "out of memory");
    l->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    l->send_by = stream_clock() + h->service.config->header_seconds;
    link_add(h, l);
    *context = l;
}

/* A request's first line has come. */
static void *on_first_line(void *cls, const char *uri, struct MHD_Connection *connection)
{
    struct http *h = cls;
    struct link *l =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    return call_open(h, &h->service, l, connection, uri);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **context)
{
    struct call *c = *context;
    (void)cls, (void)connection;
    if (!c->has_headers)
        return call_headers(c, method, url, version);
    if (*upload_size == 0)
        return call_answer(c);
    size_t n = *upload_size;
    *upload_size = 0;
    return call_body(c, upload, n);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode how)
{
    (void)cls, (void)connection, (void)how;
    if (*context)
        call_close(*context);
    *context = NULL;
}

__attribute__((format(printf, 2, 0))) static void on_log(void *cls, const char *fmt, va_list ap)
{
    char line[512];
    (void)cls;
    vsnprintf(line, sizeof line, fmt, ap);
    line[strcspn(line, "\n")] = '\0';
    log_line(LOG_DEBUG, "libmicrohttpd: %s", line);
}

/* ------------------------------------------------------- up */

static int try_listen(const struct addrinfo *a)
{
    const int on = 1, send_buffer = SEND_BUFFER; /* connections inherit them */
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer) ||
        bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, BACKLOG)) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

/* The port that the kernel chose, if it was to. */
static void make_url(struct http *h)
{
    const struct config *c = h->service.config;
    struct sockaddr_storage address;
    socklen_t n = sizeof address;
    char port[16];
    CHECK(getsockname(h->listener, (struct sockaddr *)&address, &n) == 0);
    CHECK(getnameinfo((struct sockaddr *)&address, n, NULL, 0, port, sizeof port, NI_NUMERICSERV) ==
          0);
    bool v6 = strchr(c->host, ':') != NULL;
    snprintf(h->url, sizeof h->url, "http://%s%s%s:%s", v6 ? "[" : "", c->host, v6 ? "]" : "",
             port);
}

static int bind_port(struct http *h, struct err *err)
{
    const struct config *c = h->service.config;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list;
    char port[16];
    snprintf(port, sizeof port, "%d", c->port);
    int failed = getaddrinfo(c->host, port, &hints, &list);
    if (failed)
        return err_set(err, ERR_INVALID, "--host: %s: %s", c->host, gai_strerror(failed));
    h->listener = -1;
    for (const struct addrinfo *a = list; a && h->listener < 0; a = a->ai_next)
        h->listener = try_listen(a);
    int why = errno;
    freeaddrinfo(list);
    if (h->listener < 0)
        return err_set(err, ERR_UNAVAILABLE, "cannot listen on %s port %d: %s", c->host, c->port,
                       strerror(why));
    make_url(h);
    return 0;
}

static struct metrics *open_metrics(void)
{
    struct metrics_endpoint endpoints[64];
    CHECK(n_routes <= 64);
    for (int i = 0; i < n_routes; i++)
        endpoints[i] = (struct metrics_endpoint){routes[i].method, routes[i].path};
    return metrics_open(endpoints, n_routes);
}

int http_open(struct http **out, const struct config *config, struct budget *budget,
              struct err *err)
{
    struct http *h = calloc(1, sizeof *h);
    CHECK(h && "out of memory");
    h->service.config = config;
    h->listener = -1;
    h->service.metrics = open_metrics();
    h->service.budget = budget;
    pthread_mutex_init(&h->lock, NULL);
    if (auth_open(&h->service.auth, config->api_key, config->api_key_file, err) ||
        bind_port(h, err)) {
        http_close(h);
        return -1;
    }
    *out = h;
    return 0;
}

int http_reload(struct http *h, struct err *err)
{
    int clients;
    if (auth_reload(h->service.auth, err))
        return -1;
    int keys = auth_keys(h->service.auth, &clients);
    log_line(LOG_INFO, "SIGHUP: %d keys of %d names", keys, clients);
    return 0;
}

const char *http_url(const struct http *h)
{
    return h->url;
}

/* Every connection is a file; the soft limit is often 1024. Returns how many connections there can
 * be: with none to spare for them, models, twists and keys could not be read. */
static int raise_file_limit(int connections)
{
    struct rlimit files;
    rlim_t want = (rlim_t)(connections + SPARE_FILES);
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur >= want)
        return connections;
    files.rlim_cur = want < files.rlim_max ? want : files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files); /* or not, in a sandbox */
    if (getrlimit(RLIMIT_NOFILE, &files) || files.rlim_cur >= want)
        return connections;
    int possible = files.rlim_cur > SPARE_FILES ? (int)files.rlim_cur - SPARE_FILES : 1;
    log_line(LOG_WARN, "the limit of %llu open files allows %d connections, not %d",
             (unsigned long long)files.rlim_cur, possible, connections);
    return possible;
}

int http_start(struct http *h, struct engine *engine, struct err *err)
{
    const struct config *c = h->service.config;
    h->service.engine = engine;
    int connections = raise_file_limit(c->max_connections);
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_LISTEN_SOCKET, h->listener, NULL},
        {MHD_OPTION_CONNECTION_LIMIT, connections, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, c->idle_seconds, NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, CONNECTION_MEMORY, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, /* first, as it asks to be */
        MHD_OPTION_ARRAY, options, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
        MHD_OPTION_URI_LOG_CALLBACK, on_first_line, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_END);
    if (!h->daemon)
        return err_set(err, ERR_INTERNAL, "the HTTP server cannot be started");
    return 0;
}

/* ------------------------------------------------------- down */

void http_quiesce(struct http *h)
{
    MHD_quiesce_daemon(h->daemon);
    shutdown(h->listener, SHUT_RDWR); /* those who come now are told at once, not left waiting */
}

int http_calls(struct http *h)
{
    int connections, calls;
    http_count(h, &connections, &calls);
    return calls;
}

void http_cancel(struct http *h)
{
    pthread_mutex_lock(&h->lock);
    for (struct link *l = h->links; l; l = l->next)
        if (l->stream)
            stream_cancel(l->stream);
    pthread_mutex_unlock(&h->lock);
}

void http_close(struct http *h)
{
    if (!h)
        return;
    if (h->daemon) {
        MHD_quiesce_daemon(h->daemon); /* or it would close the listener itself */
        MHD_stop_daemon(h->daemon);
    }
    if (h->listener >= 0)
        close(h->listener);
    auth_close(h->service.auth);
    metrics_close(h->service.metrics);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
