/* flood PORT RATE SECONDS HELD: connections to 127.0.0.1, so many a second, which say nothing and
 * are reset when HELD newer ones have come. Prints how many there were, and those that were
 * completed. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int begin(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct linger reset = {1, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Was it completed? */
static int end(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int done = poll(&p, 1, 0) == 1 && (p.revents & (POLLOUT | POLLERR | POLLHUP)) == POLLOUT;
    close(fd);
    return done;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    int port = (int)strtol(argv[1], NULL, 10), held = (int)strtol(argv[4], NULL, 10);
    double rate = strtod(argv[2], NULL), seconds = strtod(argv[3], NULL);
    struct rlimit files = {(rlim_t)held + 16, (rlim_t)held + 16};
    int *fd = calloc((size_t)held, sizeof *fd);
    long n = 0, completed = 0;
    if (!fd || setrlimit(RLIMIT_NOFILE, &files))
        return 1;
    for (double begun = now(), t; (t = now() - begun) < seconds;) {
        if ((double)n >= rate * t) {
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
            continue;
        }
        int *slot = &fd[n % held];
        completed += *slot > 0 && end(*slot);
        *slot = begin(port);
        n += *slot > 0;
    }
    for (int i = 0; i < held; i++)
        completed += fd[i] > 0 && end(fd[i]);
    printf("%ld %ld\n", n, completed);
    free(fd);
    return 0;
}
