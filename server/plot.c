#include "plot.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../core/replace.h"

/* Everything is in pixels of a page of this width; y grows downwards. */
enum {
    WIDTH = 840,
    LEFT = 76,
    RIGHT = 600, /* the plotting area ends, the legend is behind it */
    LEGEND = 620,
    HEAD = 64,
    FOOT = 60,   /* of a panel: below what points can be in */
    ALONE = 360, /* the height of that, for one panel and for several */
    STACKED = 204,
    INSET = 14, /* between the area's edge and the outermost points */
    TICKS = 5,
    TICK_ROOM = 30, /* between labels */
    MANY = 60,      /* points of a series: no circles */
};

static const char *const hues[PLOT_HUES] = {"#3b82c4", "#d9822b", "#2f9e6e", "#b565b5"};

static const char style[] =
    "<style type=\"text/css\">\n"
    "text{font:12px system-ui,-apple-system,\"Segoe UI\",sans-serif;fill:#333}\n"
    ".title{font-size:16px;font-weight:600}.page{fill:#fff}.grid{stroke:#e4e4e4}\n"
    ".frame{stroke:#999;fill:none}.level{stroke:#333;stroke-dasharray:2 3}.open{fill:#fff}\n"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}.page,.open{fill:#17191d}\n"
    ".grid{stroke:#33363c}.frame{stroke:#777}.level{stroke:#ddd}}\n"
    "</style>\n";

struct axis {
    double low, high; /* of the data, already a logarithm on a logarithmic axis */
};

struct frame { /* a panel's place on the page */
    const struct plot_panel *p;
    double top, height;
    struct axis x, y;
};

/* ------------------------------------------------------- text */

/* What XML cannot hold at all becomes a space: control characters, and the two non-characters. */
static void put_text(struct buf *out, const char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '&')
            buf_puts(out, "&amp;");
        else if (c == '<')
            buf_puts(out, "&lt;");
        else if (c == '>')
            buf_puts(out, "&gt;");
        else if (c < ' ')
            buf_puts(out, " ");
        else if (strncmp(s, "\xef\xbf\xbe", 3) == 0 || strncmp(s, "\xef\xbf\xbf", 3) == 0)
            s += 2;
        else
            buf_add(out, s, 1);
    }
}

static void text(struct buf *out, double x, double y, const char *attributes, const char *s)
{
    buf_printf(out, "<text x=\"%.2f\" y=\"%.2f\" %s>", x, y, attributes);
    put_text(out, s);
    buf_puts(out, "</text>\n");
}

/* ------------------------------------------------------- axes */

static double along_x(const struct frame *f, double x)
{
    double t = f->p->log_x ? log2(x) : x;
    return LEFT + INSET + (t - f->x.low) / (f->x.high - f->x.low) * (RIGHT - LEFT - 2 * INSET);
}

static double along_y(const struct frame *f, double y)
{
    return f->top + f->height - INSET -
           (y - f->y.low) / (f->y.high - f->y.low) * (f->height - 2 * INSET);
}

static void stretch(struct axis *a, double value)
{
    if (!isfinite(value))
        return;
    a->low = fmin(a->low, value);
    a->high = fmax(a->high, value);
}

static double bar_of(const struct plot_point *p)
{
    return isfinite(p->bar) ? p->bar : 0;
}

/* An axis has a length, whatever the data. */
static void finish_axis(struct axis *a)
{
    if (a->low > a->high)
        *a = (struct axis){0, 1};
    if (a->high - a->low < 1e-9 * (1 + fabs(a->low)))
        *a = (struct axis){a->low - 0.5, a->high + 0.5};
}

static void find_range(struct frame *f)
{
    f->x = f->y = (struct axis){INFINITY, -INFINITY};
    stretch(&f->y, f->p->level);
    for (int i = 0; i < f->p->n_series; i++) {
        const struct plot_series *s = &f->p->series[i];
        for (int j = 0; j < s->n; j++) {
            const struct plot_point *p = &s->point[j];
            stretch(&f->x, f->p->log_x ? log2(p->x) : p->x);
            stretch(&f->y, p->y - bar_of(p));
            stretch(&f->y, p->y + bar_of(p));
        }
    }
    finish_axis(&f->x);
    finish_axis(&f->y);
}

/* The round step, 1, 2 or 5 times a power of ten, that makes about TICKS of a range. */
static double round_step(double range)
{
    double power = pow(10, floor(log10(range / TICKS))), n = range / TICKS / power;
    return power * (n < 1.5 ? 1 : n < 3.5 ? 2 : n < 7.5 ? 5 : 10);
}

static void tick_label(double value, double step, char *out, size_t size)
{
    int digits = step < 1 ? (int)ceil(-log10(step) - 1e-9) : 0;
    snprintf(out, size, "%.*f", digits, fabs(value) < step / 2 ? 0 : value);
}

static void y_tick(struct buf *out, const struct frame *f, double value, double step)
{
    char label[32];
    double y = along_y(f, value);
    tick_label(value, step, label, sizeof label);
    buf_printf(out, "<path class=\"grid\" d=\"M%d %.2fH%d\"/>\n", LEFT, y, RIGHT);
    text(out, LEFT - 8, y + 4, "class=\"y tick\" text-anchor=\"end\"", label);
}

static void x_tick(struct buf *out, const struct frame *f, double value, double step)
{
    char label[32];
    double x = along_x(f, value);
    tick_label(value, step, label, sizeof label);
    buf_printf(out, "<path class=\"grid\" d=\"M%.2f %.2fV%.2f\"/>\n", x, f->top,
               f->top + f->height);
    text(out, x, f->top + f->height + 18, "class=\"x tick\" text-anchor=\"middle\"", label);
}

/* Where points are, from the left; those too near to the last one have no label. */
static void log_ticks(struct buf *out, const struct frame *f)
{
    double last = -INFINITY;
    for (;;) {
        double next = INFINITY;
        for (int i = 0; i < f->p->n_series; i++)
            for (int j = 0; j < f->p->series[i].n; j++) {
                double x = f->p->series[i].point[j].x;
                if (x > last && x < next)
                    next = x;
            }
        if (!isfinite(next))
            return;
        if (!isfinite(last) || along_x(f, next) - along_x(f, last) >= TICK_ROOM)
            x_tick(out, f, next, 1);
        last = next;
    }
}

static void axes(struct buf *out, const struct frame *f)
{
    double step = round_step(f->y.high - f->y.low);
    for (double y = ceil(f->y.low / step) * step; y <= f->y.high + step * 1e-6; y += step)
        y_tick(out, f, y, step);
    step = fmax(1, round_step(f->x.high - f->x.low)); /* particles, updates: whole numbers */
    if (f->p->log_x)
        log_ticks(out, f);
    else
        for (double x = ceil(f->x.low / step) * step; x <= f->x.high + step * 1e-6; x += step)
            x_tick(out, f, x, step);
    buf_printf(out, "<rect class=\"frame\" x=\"%d\" y=\"%.2f\" width=\"%d\" height=\"%.2f\"/>\n",
               LEFT, f->top, RIGHT - LEFT, f->height);
    text(out, (LEFT + RIGHT) / 2.0, f->top + f->height + 38, "text-anchor=\"middle\"",
         f->p->x_label);
    char turned[96];
    snprintf(turned, sizeof turned, "text-anchor=\"middle\" transform=\"rotate(-90 18 %.2f)\"",
             f->top + f->height / 2);
    text(out, 18, f->top + f->height / 2, turned, f->p->y_label);
}

/* ------------------------------------------------------- series */

static void line(struct buf *out, const struct frame *f, const struct plot_series *s)
{
    bool pen_down = false;
    buf_printf(out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.6\"%s d=\"", hues[s->hue],
               s->open ? " stroke-dasharray=\"5 4\"" : "");
    for (int i = 0; i < s->n; i++) {
        const struct plot_point *p = &s->point[i];
        if (isfinite(p->y))
            buf_printf(out, "%c%.2f %.2f", pen_down ? 'L' : 'M', along_x(f, p->x),
                       along_y(f, p->y));
        pen_down = isfinite(p->y);
    }
    buf_puts(out, "\"/>\n");
}

static void say_point(struct buf *out, const struct plot_point *p)
{
    buf_printf(out, "<title>%g: %.6g", p->x, p->y);
    if (bar_of(p) > 0)
        buf_printf(out, " ± %.3g", p->bar);
    buf_puts(out, "</title>");
}

static void mark(struct buf *out, const struct frame *f, const struct plot_series *s,
                 const struct plot_point *p)
{
    double x = along_x(f, p->x), y = isfinite(p->y) ? along_y(f, p->y) : f->top + f->height;
    const char *hue = hues[s->hue], *fill = s->open ? "class=\"open\"" : "";
    if (isnan(p->y) || p->y == INFINITY)
        return;
    if (bar_of(p) > 0)
        buf_printf(out, "<path stroke=\"%s\" d=\"M%.2f %.2fV%.2fm-3 0h6M%.2f %.2fh6\"/>\n", hue, x,
                   along_y(f, p->y - p->bar), along_y(f, p->y + p->bar), x - 3,
                   along_y(f, p->y - p->bar));
    if (isfinite(p->y))
        buf_printf(out, "<circle %s cx=\"%.2f\" cy=\"%.2f\" r=\"3.5\" stroke=\"%s\"", fill, x, y,
                   hue);
    else
        buf_printf(out, "<path %s d=\"M%.2f %.2fl-5 -9h10z\" stroke=\"%s\"", fill, x, y, hue);
    buf_printf(out, s->open ? ">" : " fill=\"%s\">", hue);
    say_point(out, p);
    buf_puts(out, isfinite(p->y) ? "</circle>\n" : "</path>\n");
}

static void series(struct buf *out, const struct frame *f, const struct plot_series *s)
{
    buf_puts(out, "<g>\n");
    line(out, f, s);
    for (int i = 0; i < s->n && s->n <= MANY; i++)
        mark(out, f, s, &s->point[i]);
    buf_puts(out, "</g>\n");
}

static void level(struct buf *out, const struct frame *f)
{
    if (!isfinite(f->p->level))
        return;
    double y = along_y(f, f->p->level);
    buf_printf(out, "<path class=\"level\" d=\"M%d %.2fH%d\"/>\n", LEFT, y, RIGHT);
}

static void legend(struct buf *out, const struct frame *f)
{
    double y = f->top + 12;
    for (int i = 0; i < f->p->n_series; i++) {
        const struct plot_series *s = &f->p->series[i];
        if (!s->name)
            continue;
        buf_printf(out, "<path stroke=\"%s\" stroke-width=\"1.6\"%s d=\"M%d %.2fh22\"/>\n",
                   hues[s->hue], s->open ? " stroke-dasharray=\"5 4\"" : "", LEGEND, y);
        text(out, LEGEND + 30, y + 4, "class=\"legend\"", s->name);
        y += 20;
    }
    if (!isfinite(f->p->level))
        return;
    buf_printf(out, "<path class=\"level\" d=\"M%d %.2fh22\"/>\n", LEGEND, y);
    text(out, LEGEND + 30, y + 4, "class=\"legend\"", f->p->level_name);
}

/* ------------------------------------------------------- the page */

void plot_svg(struct buf *out, const struct plot *plot)
{
    int area = plot->n_panels == 1 ? ALONE : STACKED;
    int height = HEAD + plot->n_panels * (area + FOOT);
    buf_printf(out,
               "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
               "<svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" width=\"%d\" "
               "height=\"%d\" viewBox=\"0 0 %d %d\">\n",
               WIDTH, height, WIDTH, height);
    buf_puts(out, style);
    buf_printf(out, "<rect class=\"page\" width=\"%d\" height=\"%d\"/>\n", WIDTH, height);
    text(out, LEFT, 28, "class=\"title\"", plot->title);
    text(out, LEFT, 48, "class=\"subtitle\"", plot->subtitle);
    for (int i = 0; i < plot->n_panels; i++) {
        struct frame f = {.p = &plot->panel[i], .top = HEAD + i * (area + FOOT), .height = area};
        find_range(&f);
        buf_puts(out, "<g>\n");
        axes(out, &f);
        level(out, &f);
        for (int j = 0; j < f.p->n_series; j++)
            series(out, &f, &f.p->series[j]);
        legend(out, &f);
        buf_puts(out, "</g>\n");
    }
    buf_puts(out, "</svg>\n");
}

/* ------------------------------------------------------- files */

static int begin(struct replace *r, const char *path, struct err *err)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct stat st;
    if (!*name ||
        (stat(path, &st) == 0 && !S_ISREG(st.st_mode))) /* or a device would be replaced */
        return err_set(err, ERR_FILE, "%s: is not a plain file", path);
    struct buf folder = {0};
    buf_add(&folder, path, (size_t)(name - path));
    int rc = replace_begin(r, slash ? folder.data : ".", name, err);
    buf_free(&folder);
    return rc;
}

int plot_check(const char *path, struct err *err)
{
    struct replace r;
    if (begin(&r, path, err))
        return -1;
    replace_cancel(&r);
    return 0;
}

static int write_all(const struct replace *r, const struct buf *b, struct err *err)
{
    for (size_t done = 0; done < b->len;) {
        ssize_t n = write(r->fd, b->data + done, b->len - done);
        if (n < 0)
            return err_set(err, ERR_FILE, "%s: %s", r->path, strerror(errno));
        done += (size_t)n;
    }
    return 0;
}

int plot_write(const char *path, const struct plot *plot, struct err *err)
{
    struct replace r;
    struct buf svg = {0};
    if (begin(&r, path, err))
        return -1;
    plot_svg(&svg, plot);
    int rc = write_all(&r, &svg, err);
    buf_free(&svg);
    if (rc)
        replace_cancel(&r);
    return rc ? -1 : replace_commit(&r, err);
}
