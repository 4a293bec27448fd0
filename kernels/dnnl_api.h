/* The few calls of oneDNN's C API that changed between its major versions 2 (Debian 12) and 3
 * (Ubuntu 24.04), under one name each. A memory descriptor is a struct in 2 and a handle in 3. */
#pragma once
#include <stdint.h>

#include <oneapi/dnnl/dnnl.h>

#if DNNL_VERSION_MAJOR >= 3

typedef const_dnnl_memory_desc_t md_ref;
#define MD_REF(md) (md)

static inline dnnl_status_t md_init(dnnl_memory_desc_t *md, int64_t rows, int64_t columns,
                                    dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(md, 2, (dnnl_dims_t){rows, columns}, type, tag);
}

static inline dnnl_status_t md_copy(dnnl_memory_desc_t *md, md_ref from)
{
    return dnnl_memory_desc_clone(md, from);
}

static inline void md_drop(dnnl_memory_desc_t *md)
{
    if (*md)
        dnnl_memory_desc_destroy(*md);
}

static inline dnnl_status_t matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, md_ref x,
                                        md_ref w, md_ref y, dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(pd, engine, x, w, NULL, y, attr);
}

static inline dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}

#else

typedef const dnnl_memory_desc_t *md_ref;
#define MD_REF(md) (&(md))

static inline dnnl_status_t md_init(dnnl_memory_desc_t *md, int64_t rows, int64_t columns,
                                    dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(md, 2, (dnnl_dims_t){rows, columns}, type, tag);
}

static inline dnnl_status_t md_copy(dnnl_memory_desc_t *md, md_ref from)
{
    *md = *from;
    return dnnl_success;
}

static inline void md_drop(dnnl_memory_desc_t *md)
{
    (void)md;
}

static inline dnnl_status_t matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, md_ref x,
                                        md_ref w, md_ref y, dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t d;
    dnnl_status_t s = dnnl_matmul_desc_init(&d, x, w, NULL, y);
    return s == dnnl_success ? dnnl_primitive_desc_create(pd, &d, attr, engine, NULL) : s;
}

static inline dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1.0f);
}

#endif
