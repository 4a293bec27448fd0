/* The backend under test: CLOTHO_TEST_BACKEND, else the CPU. Only tests read that variable. */
#pragma once
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static inline const char *test_backend(void)
{
    const char *kind = getenv("CLOTHO_TEST_BACKEND");
    return kind ? kind : "cpu";
}

/* Sanitizers and devices on the CPU are slow: there, fewer cases do, which still have every value
 * of each parameter, and means over fewer runs. */
static inline bool test_is_slow(void)
{
#ifdef __SANITIZE_ADDRESS__
    return true;
#else
    return strcmp(test_backend(), "cpu") != 0;
#endif
}
