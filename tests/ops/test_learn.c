/* The operations of twists' heads: activations, their way back, gradients of a linear layer, Adam.
 */
#include "driver.h"

/* Streams of this file's inputs. */
enum { IN_DY = 20, IN_INIT, IN_MOMENT1, IN_MOMENT2 };

static int width_of_dim(const int *d)
{
    return d[0];
}

/* ---- activate: d = {dim}. Inputs reach to where e^-x overflows and underflows. ---- */

static float activate_input(const int *d, int row, int j)
{
    float x = noise(IN_X, (size_t)row * (size_t)d[0] + (size_t)j);
    return j % 5 == 4 ? 0.0f * x : x * (row % 3 ? 6.0f : 110.0f);
}

static void activate_run(struct backend *b, const int *d, enum activation f, const int32_t *rows,
                         int n, void *out, size_t element)
{
    struct buffers mem = {.b = b};
    const size_t count = (size_t)n * (size_t)d[0];
    float *x = malloc(sizeof *x * count);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < d[0]; j++)
            x[(size_t)i * (size_t)d[0] + (size_t)j] = activate_input(d, rows[i], j);
    float *x_dev = dev_new(&mem, x, sizeof *x * count);
    void *y = f == ACTIVATE_LOG_SIGMOID ? x_dev : dev_new(&mem, NULL, element * count);
    EXPECT_INT(b->ops->activate(b, y, f, x_dev, n, d[0]), 0);
    EXPECT_INT(b->ops->download(b, out, y, element * count), 0);
    dev_free_all(&mem);
    free(x);
}

static void relu_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    activate_run(b, d, ACTIVATE_RELU, rows, n, out, act_size(b->act));
}

static void relu_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    for (int j = 0; j < d[0]; j++) {
        y[j] = fmax(0, (double)as_act(act, activate_input(d, row, j)));
        bound[j] = 0;
    }
}

static void log_sigmoid_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    activate_run(b, d, ACTIVATE_LOG_SIGMOID, rows, n, out, sizeof(float));
}

/* e^-|x| is good to 2u, log1p after it to 5u more, one rounding of the sum, whose terms have one
 * sign. Below the smallest normal float it is 0. */
static void log_sigmoid_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    (void)act;
    for (int j = 0; j < d[0]; j++) {
        double x = (double)activate_input(d, row, j);
        y[j] = fmin(x, 0) - log1p(exp(-fabs(x)));
        bound[j] = 8 * u * fabs(y[j]) + 2e-38;
    }
}

/* ---- relu_grad: d = {dim} ---- */

static float relu_output(const int *d, int row, int j)
{
    float y = noise(IN_Y, (size_t)row * (size_t)d[0] + (size_t)j);
    return j % 7 == 3 ? -0.0f : y < 0 ? 0 : y;
}

static void relu_grad_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t count = (size_t)n * (size_t)d[0];
    float *dy = gather(IN_DY, rows, n, d[0]), *y = malloc(sizeof *y * count);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < d[0]; j++)
            y[(size_t)i * (size_t)d[0] + (size_t)j] = relu_output(d, rows[i], j);
    void *act = act_from_float(b->act, y, count);
    float *dx = dev_new(&mem, dy, sizeof *dy * count); /* in place */
    EXPECT_INT(b->ops->relu_grad(b, dx, dx, dev_new(&mem, act, act_size(b->act) * count), n, d[0]),
               0);
    EXPECT_INT(b->ops->download(b, out, dx, sizeof *dx * count), 0);
    dev_free_all(&mem);
    free(act);
    free(dy);
    free(y);
}

static void relu_grad_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    for (int j = 0; j < d[0]; j++) {
        double dy = (double)noise(IN_DY, (size_t)row * (size_t)d[0] + (size_t)j);
        y[j] = as_act(act, relu_output(d, row, j)) > 0 ? dy : 0;
        bound[j] = 0;
    }
}

/* ---- linear_grad's dx: d = {in, out, sparse} ---- */

static int32_t grad_col(const int *d, int row)
{
    return (int32_t)((row * 13) % d[1] % 7); /* columns that come often */
}

static void dx_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t count = (size_t)n * (size_t)d[0], one = 1;
    const size_t n_dy = (size_t)n * (d[2] ? one : (size_t)d[1]);
    float *dy = gather(IN_DY, rows, n, d[2] ? 1 : d[1]);
    float *w = gather(IN_W, &(int32_t){0}, 1, d[0] * d[1]);
    int32_t col[MAX_ROWS];
    for (int i = 0; i < n; i++)
        col[i] = grad_col(d, rows[i]);
    const struct linear_grad_args a = {
        .dy = dev_new(&mem, dy, sizeof *dy * n_dy),
        .col = d[2] ? dev_new(&mem, col, sizeof *col * (size_t)n) : NULL,
        .w = dev_new(&mem, w, sizeof *w * (size_t)(d[0] * d[1])),
        .dx = dev_new(&mem, NULL, sizeof(float) * count),
        .in = d[0],
        .out = d[1],
    };
    EXPECT_INT(b->ops->linear_grad(b, &a, n), 0);
    EXPECT_INT(b->ops->download(b, out, a.dx, sizeof(float) * count), 0);
    dev_free_all(&mem);
    free(dy);
    free(w);
}

static void dx_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    (void)act;
    for (int k = 0; k < d[0]; k++) {
        double sum = 0, size = 0;
        for (int j = d[2] ? grad_col(d, row) : 0; j <= (d[2] ? grad_col(d, row) : d[1] - 1); j++) {
            double p = (double)noise(IN_DY, (size_t)(d[2] ? row : row * d[1] + j)) *
                       (double)noise(IN_W, (size_t)(j * d[0] + k));
            sum += p;
            size += fabs(p);
        }
        y[k] = sum;
        bound[k] = (d[2] ? 1 : d[1]) * u * size;
    }
}

/* ---- linear_grad's dw and db: d = {in, n, sparse, out}. A row is one of dw with its element of db
 * behind it: a function of that output's column of dy. Given in two calls, the second from row
 * n / 3 on, which must not matter. ---- */

static int dw_width(const int *d)
{
    return d[0] + 1;
}

/* dy of gradient row i and output j; sparse: its only one. */
static float dw_dy(const int *d, int i, int j)
{
    return noise(IN_DY, (size_t)(d[2] ? i : i * d[3] + j));
}

static float dw_x(const int *d, int i, int k)
{
    return noise(IN_X, (size_t)(i * d[0] + k));
}

static int32_t dw_col(const int *d, int i)
{
    return (int32_t)((i * 5) % d[3] % 9);
}

/* The gradient rows as these outputs see them, their places in rows[] as columns: a sparse one of
 * another output is worth nothing. */
static void dw_inputs(const int *d, const int32_t *rows, int n, float *dy, int32_t *col)
{
    for (int i = 0; i < d[1]; i++) {
        for (int j = 0; j < n && !d[2]; j++)
            dy[i * n + j] = dw_dy(d, i, rows[j]);
        if (!d[2])
            continue;
        dy[i] = 0;
        col[i] = 0;
        for (int j = 0; j < n; j++)
            if (rows[j] == dw_col(d, i)) {
                dy[i] = dw_dy(d, i, 0);
                col[i] = j;
            }
    }
}

static void dw_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t in = (size_t)d[0], depth = (size_t)d[1], n_dy = d[2] ? 1 : (size_t)n;
    const int first = d[1] / 3;
    float *dy = malloc(sizeof *dy * n_dy * depth), *x = malloc(sizeof *x * depth * in);
    float *init = gather(IN_INIT, rows, n, d[0] + 1), *dw = malloc(sizeof *dw * (size_t)n * in);
    float *db = malloc(sizeof *db * (size_t)n), *to = out;
    int32_t *col = malloc(sizeof *col * depth);
    dw_inputs(d, rows, n, dy, col);
    for (size_t i = 0; i < depth * in; i++)
        x[i] = dw_x(d, 0, (int)i);
    for (int j = 0; j < n; j++) {
        memcpy(dw + (size_t)j * in, init + (size_t)j * (in + 1), sizeof *dw * in);
        db[j] = init[(size_t)j * (in + 1) + in];
    }
    void *x_act = act_from_float(b->act, x, depth * in);
    struct linear_grad_args a = {
        .dy = dev_new(&mem, dy, sizeof *dy * n_dy * depth),
        .col = d[2] ? dev_new(&mem, col, sizeof *col * depth) : NULL,
        .x = dev_new(&mem, x_act, act_size(b->act) * depth * in),
        .dw = dev_new(&mem, dw, sizeof *dw * (size_t)n * in),
        .db = dev_new(&mem, db, sizeof *db * (size_t)n),
        .in = d[0],
        .out = n,
    };
    if (first > 0)
        EXPECT_INT(b->ops->linear_grad(b, &a, first), 0);
    a.dy += (size_t)first * n_dy;
    a.col = a.col ? a.col + first : NULL;
    a.x = (const char *)a.x + act_size(b->act) * (size_t)first * in;
    EXPECT_INT(b->ops->linear_grad(b, &a, d[1] - first), 0);
    EXPECT_INT(b->ops->download(b, dw, a.dw, sizeof *dw * (size_t)n * in), 0);
    EXPECT_INT(b->ops->download(b, db, a.db, sizeof *db * (size_t)n), 0);
    for (int j = 0; j < n; j++) {
        memcpy(to + (size_t)j * (in + 1), dw + (size_t)j * in, sizeof *dw * in);
        to[(size_t)j * (in + 1) + in] = db[j];
    }
    dev_free_all(&mem);
    free(dy), free(x), free(x_act), free(init), free(dw), free(db), free(col);
}

/* The sum of d[1] products and what was there: one rounding each, and one of each product where
 * the level does not fuse them. */
static void dw_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    for (int k = 0; k <= d[0]; k++) {
        y[k] = (double)noise(IN_INIT, (size_t)(row * (d[0] + 1) + k));
        double size = fabs(y[k]);
        for (int i = 0; i < d[1]; i++) {
            double p = d[2] && dw_col(d, i) != row ? 0 : (double)dw_dy(d, i, row);
            p *= k < d[0] ? (double)as_act(act, dw_x(d, i, k)) : 1;
            y[k] += p;
            size += fabs(p);
        }
        bound[k] = (d[1] + 1) * u * size;
    }
}

/* In one call or in two the sums are the same, to the bit: rows are added in order. */
static void test_grad_in_order(struct backend *b)
{
    enum { IN = 50, OUT = 70, N = 600, FIRST = 311 };
    float *dy = gather(IN_DY, &(int32_t){0}, 1, N * OUT),
          *x = gather(IN_X, &(int32_t){0}, 1, N * IN);
    void *x_act = act_from_float(b->act, x, N * IN);
    static float zero[IN * OUT], once[IN * OUT], twice[IN * OUT];
    struct buffers mem = {.b = b};
    struct linear_grad_args a = {
        .dy = dev_new(&mem, dy, sizeof *dy * N * OUT),
        .x = dev_new(&mem, x_act, act_size(b->act) * N * IN),
        .dw = dev_new(&mem, zero, sizeof zero),
        .in = IN,
        .out = OUT,
    };
    EXPECT_INT(b->ops->linear_grad(b, &a, N), 0);
    EXPECT_INT(b->ops->download(b, once, a.dw, sizeof once), 0);
    EXPECT_INT(b->ops->upload(b, a.dw, zero, sizeof zero), 0);
    EXPECT_INT(b->ops->linear_grad(b, &a, FIRST), 0);
    a.dy += (size_t)FIRST * OUT;
    a.x = (const char *)a.x + act_size(b->act) * FIRST * IN;
    EXPECT_INT(b->ops->linear_grad(b, &a, N - FIRST), 0);
    EXPECT_INT(b->ops->download(b, twice, a.dw, sizeof twice), 0);
    EXPECT(memcmp(once, twice, sizeof once) == 0);
    dev_free_all(&mem);
    free(dy), free(x), free(x_act);
}

/* ---- adam: d = {dim, step}; a row is w | m | v | g ---- */

static int adam_width(const int *d)
{
    return 4 * d[0];
}

/* Number `part` of w, m, v, g of element j. Some gradients are 0, some moments denormal. */
static float adam_input(const int *d, int row, int part, int j)
{
    static const uint32_t stream[] = {IN_W, IN_MOMENT1, IN_MOMENT2, IN_DY};
    float x = noise(stream[part], (size_t)(row * d[0] + j));
    if (part == 0)
        return x;
    x *= part == 2 ? 1e-4f * x : 0.01f;
    if (j % 6 == 1)
        return part == 3 ? 0 : x * 1e-37f;
    return j % 6 == 2 ? x * 1e-20f : x;
}

static const struct adam_args adam_rates = {.rate = 0.01f, .b1 = 0.9f, .b2 = 0.999f, .eps = 1e-8f};

static void adam_run(struct backend *b, const int *d, const int32_t *rows, int n, void *out)
{
    struct buffers mem = {.b = b};
    const size_t dim = (size_t)d[0], bytes = sizeof(float) * dim * (size_t)n;
    float *part = malloc(bytes), *dev[4];
    for (int p = 0; p < 4; p++) {
        for (int i = 0; i < n; i++)
            for (int j = 0; j < d[0]; j++)
                part[i * d[0] + j] = adam_input(d, rows[i], p, j);
        dev[p] = dev_new(&mem, part, bytes);
    }
    struct adam_args a = adam_rates;
    a.w = dev[0];
    a.m = dev[1];
    a.v = dev[2];
    a.g = dev[3];
    a.step = d[1];
    EXPECT_INT(b->ops->adam(b, &a, dim * (size_t)n), 0);
    for (int p = 0; p < 4; p++) {
        EXPECT_INT(b->ops->download(b, part, dev[p], bytes), 0);
        for (int i = 0; i < n; i++)
            memcpy((float *)out + ((size_t)i * 4 + (size_t)p) * dim, part + (size_t)i * dim,
                   sizeof(float) * dim);
    }
    dev_free_all(&mem);
    free(part);
}

/* A moment: two products, a sum. The step: those of m, half of v's, six more; and the subtraction.
 * What is denormal may count as 0. */
static void adam_want(enum act_type act, const int *d, int row, double *y, double *bound)
{
    const double b1 = (double)adam_rates.b1, b2 = (double)adam_rates.b2, tiny = 2e-38;
    const double rate = (double)adam_rates.rate, eps = (double)adam_rates.eps;
    (void)act;
    for (int j = 0; j < d[0]; j++) {
        const double w = (double)adam_input(d, row, 0, j), g = (double)adam_input(d, row, 3, j);
        const double old_m = b1 * (double)adam_input(d, row, 1, j);
        const double old_v = b2 * (double)adam_input(d, row, 2, j);
        const double m = old_m + (1 - b1) * g, v = old_v + (1 - b2) * g * g;
        const double off_m = 3 * u * (fabs(old_m) + fabs((1 - b1) * g)) + tiny;
        const double down = sqrt(v / (1 - pow(b2, d[1]))) + eps;
        const double scale = rate / (1 - pow(b1, d[1])) / down;
        const double values[] = {w - scale * m, m, v, 0};
        const double off[] = {u * fabs(values[0]) + scale * (off_m + 10 * u * fabs(m)), off_m,
                              4 * u * v + tiny, 0};
        for (int p = 0; p < 4; p++) {
            y[p * d[0] + j] = values[p];
            bound[p * d[0] + j] = off[p];
        }
    }
}

/* ---- the table ---- */

static const struct op op_relu = {"relu", true, width_of_dim, relu_run, relu_want, NULL};
static const struct op op_log_sigmoid = {"log_sigmoid",    false, width_of_dim, log_sigmoid_run,
                                         log_sigmoid_want, NULL};
static const struct op op_relu_grad = {"relu_grad",   false,          width_of_dim,
                                       relu_grad_run, relu_grad_want, NULL};
static const struct op op_dx = {"linear_grad dx", false, width_of_dim, dx_run, dx_want, NULL};
static const struct op op_dw = {"linear_grad dw", false, dw_width, dw_run, dw_want, NULL};
static const struct op op_adam = {"adam", false, adam_width, adam_run, adam_want, NULL};

static const struct op_test cases[] = {
    {&op_relu, {5, {1}}},
    {&op_relu, {30, {47}}},
    {&op_relu, {9, {576}}},
    {&op_log_sigmoid, {5, {1}}},
    {&op_log_sigmoid, {30, {47}}},
    {&op_log_sigmoid, {9, {2050}}},
    {&op_relu_grad, {5, {1}}},
    {&op_relu_grad, {30, {47}}},
    {&op_relu_grad, {9, {576}}},
    {&op_dx, {3, {1, 1, false}}},
    {&op_dx, {7, {5, 6, false}}},
    {&op_dx, {70, {47, 300, false}}},
    {&op_dx, {40, {96, 64, false}}},
    {&op_dx, {9, {576, 700, false}}},
    {&op_dx, {3, {1, 1, true}}},
    {&op_dx, {70, {47, 300, true}}},
    {&op_dx, {20, {576, 700, true}}},
    {&op_dw, {1, {1, 1, false, 1}}},
    {&op_dw, {7, {5, 3, false, 7}}},
    {&op_dw, {70, {47, 300, false, 70}}},
    {&op_dw, {40, {96, 64, false, 40}}},
    {&op_dw, {33, {576, 600, false, 33}}},
    {&op_dw, {1, {1, 1, true, 1}}},
    {&op_dw, {70, {47, 30, true, 70}}},
    {&op_dw, {33, {576, 600, true, 33}}},
    {&op_adam, {5, {1, 1}}},
    {&op_adam, {30, {47, 3}}},
    {&op_adam, {300, {47, 1000}}},
};
enum { N_CASES = sizeof cases / sizeof *cases };

int main(int argc, char **argv)
{
    run_everywhere(argc, argv, cases, N_CASES, test_grad_in_order);
    return test_failures();
}
