/* Pictures of points and lines as SVG 1.1: no script, no fonts, one file. Colours follow the
 * reader's light or dark mode. Every point is a circle (or, at minus infinity, a triangle on the
 * floor) that says its numbers in a <title>; a series of many points is a line without them. */
#pragma once
#include <stdbool.h>

#include "../core/buf.h"
#include "../core/err.h"

struct plot_point {
    double x, y; /* y: -inf is on the floor, NaN is left out */
    double bar;  /* half the length of its error bar; 0 or NaN: none */
};

struct plot_series {
    const char *name; /* UTF-8; in the legend unless it is NULL */
    int hue;          /* 0..PLOT_HUES-1 */
    bool open;        /* a dashed line, circles that are not filled */
    const struct plot_point *point;
    int n;
};

struct plot_panel {
    const char *x_label, *y_label;
    bool log_x; /* ticks where points are */
    const struct plot_series *series;
    int n_series;
    double level; /* of a horizontal line; NaN: none */
    const char *level_name;
};

struct plot {
    const char *title, *subtitle;
    const struct plot_panel *panel; /* below each other */
    int n_panels;
};

enum { PLOT_HUES = 4 };

void plot_svg(struct buf *out, const struct plot *);

/* Could a picture be written there? Nothing is left behind. ERR_FILE. */
int plot_check(const char *path, struct err *err);

/* Write it; a file that was there is replaced as a whole, or left alone. ERR_FILE. */
int plot_write(const char *path, const struct plot *, struct err *err);
