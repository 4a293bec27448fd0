/* Twist memory: the heads of learned twists, loaded when first asked for and kept until their room
 * is needed, and what learning takes. Several runs share a head. One that no run uses is closed,
 * the least recently used first, when something else asks for its room. A file that was replaced is
 * another twist: runs that use the old one go on with it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

struct loaded_head {
    struct loaded_head *next;
    struct head *head;
    char name[TWIST_NAME_MAX + 1];
    uint64_t identity; /* of the file it was read from */
    size_t bytes;
    int users, studies; /* of the users */
    uint64_t last_use;
};

size_t machine_head_bytes(const struct machine *m, const struct twist_spec *s)
{
    return head_bytes(s, m->backend->act, model_chunk_rows(m->model), false);
}

static struct loaded_head *find(const struct machine *m, const struct twist_file *f)
{
    for (struct loaded_head *l = m->heads; l; l = l->next)
        if (l->identity == f->identity && strcmp(l->name, f->spec.name) == 0)
            return l;
    return NULL;
}

/* ---- room ---- */

/* The most that there is for something new, when all heads are closed that are not in use; if
 * `later`, those that no study uses. */
static size_t room(const struct machine *m, bool later)
{
    size_t bytes = m->info.twist_bytes - m->learning_bytes;
    for (const struct loaded_head *l = m->heads; l; l = l->next)
        bytes -= (later ? l->studies : l->users) ? l->bytes : 0;
    return bytes;
}

size_t machine_twist_bytes_free(const struct machine *m)
{
    return room(m, false);
}

/* Close the unused head that has been idle the longest; there is one. */
static void evict(struct machine *m)
{
    struct loaded_head **oldest = NULL;
    for (struct loaded_head **at = &m->heads; *at; at = &(*at)->next)
        if (!(*at)->users && (!oldest || (*at)->last_use < (*oldest)->last_use))
            oldest = at;
    CHECK(oldest);
    struct loaded_head *l = *oldest;
    *oldest = l->next;
    m->head_bytes -= l->bytes;
    head_close(l->head);
    free(l);
}

/* Close unused heads until there are so many bytes more. False: there cannot be. */
static bool make_room(struct machine *m, size_t bytes)
{
    if (bytes > room(m, false))
        return false;
    while (bytes > m->info.twist_bytes - m->learning_bytes - m->head_bytes)
        evict(m);
    return true;
}

bool machine_take_twist_bytes(struct machine *m, size_t bytes)
{
    if (!make_room(m, bytes))
        return false;
    m->learning_bytes += bytes;
    return true;
}

void machine_give_twist_bytes(struct machine *m, size_t bytes)
{
    CHECK(bytes <= m->learning_bytes);
    m->learning_bytes -= bytes;
}

/* ---- heads ---- */

bool machine_head_fits(const struct machine *m, const struct twist_file *f, bool later)
{
    return find(m, f) || machine_head_bytes(m, &f->spec) <= room(m, later);
}

int machine_find_twist(const struct machine *m, const char *name, struct twist_file *out,
                       struct err *err)
{
    const struct engine_info *i = &m->info;
    if (!*i->twist_dir)
        return err_field(err, "twist.name", "this server has no twist folder (--twist-dir)");
    if (twist_stat(out, i->twist_dir, name, err) != 0) {
        snprintf(err->param, sizeof err->param, "twist.name");
        return -1;
    }
    return twist_check_model(&out->spec, i->fingerprint, i->config.dim, i->config.vocab, err);
}

static bool same_shape(const struct twist_spec *a, const struct twist_spec *b)
{
    return a->dim == b->dim && a->vocab == b->vocab && a->n_layers == b->n_layers &&
           a->hidden == b->hidden && a->conditional == b->conditional && a->resample == b->resample;
}

/* The file as it is now: it may have been replaced since the request was accepted, by one that the
 * request was not planned for. */
static int read_twist(const struct machine *m, const struct twist_file *planned,
                      struct twist_file *now, struct twist **out, struct err *err)
{
    const char *name = planned->spec.name;
    if (machine_find_twist(m, name, now, err) != 0)
        return -1;
    if (same_shape(&now->spec, &planned->spec) &&
        twist_load(out, m->info.twist_dir, name, err) != 0)
        return -1;
    if (*out && same_shape(&(*out)->spec, &planned->spec))
        return 0;
    return err_field(err, "twist.name", "%s was replaced while this request waited", name);
}

static int load(struct machine *m, const struct twist_file *planned, struct loaded_head **out,
                struct err *err)
{
    struct twist_file now;
    struct twist *t = NULL;
    struct head *head;
    size_t bytes = machine_head_bytes(m, &planned->spec);
    int rc = read_twist(m, planned, &now, &t, err);
    if (rc == 0) {
        CHECK(make_room(m, bytes) && "a run is admitted when its head fits");
        rc = head_open(&head, m->backend, t, model_chunk_rows(m->model), false, err);
    }
    twist_free(t);
    if (rc != 0)
        return -1;
    struct loaded_head *l = calloc(1, sizeof *l);
    CHECK(l && "out of memory");
    *l = (struct loaded_head){
        .next = m->heads, .head = head, .identity = now.identity, .bytes = bytes};
    memcpy(l->name, planned->spec.name, sizeof l->name);
    m->head_bytes += bytes;
    *out = m->heads = l;
    return 0;
}

int machine_take_head(struct machine *m, const struct twist_file *planned, bool study,
                      struct head **out, struct err *err)
{
    struct loaded_head *l = find(m, planned);
    if (!l && load(m, planned, &l, err) != 0)
        return -1;
    l->users++;
    l->studies += study;
    *out = l->head;
    return 0;
}

void machine_give_head(struct machine *m, struct head *head, bool study)
{
    struct loaded_head *l = m->heads;
    while (l->head != head)
        l = l->next;
    l->users--;
    l->studies -= study;
    l->last_use = m->step;
}

int machine_heads(const struct machine *m)
{
    int n = 0;
    for (const struct loaded_head *l = m->heads; l; l = l->next)
        n++;
    return n;
}

void machine_close_heads(struct machine *m)
{
    while (m->heads) {
        m->heads->users = 0;
        evict(m);
    }
}
