/* The table of what is served. */
#pragma once
#include <stdbool.h>

#include "call.h"

struct route {
    const char *method;
    const char *path; /* as in the metrics; "{name}" at its end is any one part */
    enum MHD_Result (*handle)(struct call *); /* with the whole body there; again after a resume */
    bool open;                                /* needs no key */
};

extern const struct route routes[];
extern const int n_routes;

/* The route, HEAD being GET without the body, and what stands for {name} (a place in path, or
 * NULL). NULL: none, and then *allow names the path's methods ("GET, HEAD, OPTIONS"), or is NULL
 * when nothing has that path. */
const struct route *route_find(const char *method, const char *path, const char **name,
                               const char **allow);
