/* The tiny model in a file, and a folder for learned twists. Failures abort: there is nothing to go
 * on with. */
#pragma once
#include "../core/twist.h"
#include "tiny_model.h"

static char model_path[] = "/tmp/clotho-test-model-XXXXXX";
static char twist_dir[] = "/tmp/clotho-test-twists-XXXXXX";

static inline void files_open(void)
{
    tiny_model_write(model_path);
    CHECK(mkdtemp(twist_dir));
}

/* With all twists that are left. */
static inline void files_close(void)
{
    struct twist_file *list;
    struct err err;
    int n = twist_list(&list, twist_dir, &err);
    CHECK(n >= 0);
    for (int i = 0; i < n; i++)
        CHECK(twist_remove(twist_dir, list[i].spec.name, &err) == 0);
    free(list);
    rmdir(twist_dir);
    unlink(model_path);
}
