#include "api/exposition.h"

#include <inttypes.h>
#include <stdio.h>

#include "server/config.h"

/* A series on its way: its family, and its label texts joined. */
struct series {
    struct buf *b;
    const struct metric_family *f;
    const int64_t *v;
    char labels[256];
};

static const char *suffix(const struct metric_family *f)
{
    return f->type == METRIC_COUNTER || f->type == METRIC_COUNTER_US ? "_total" : "";
}

static int number(struct buf *b, const struct metric_family *f, int64_t v)
{
    bool seconds = f->type == METRIC_COUNTER_US || f->type == METRIC_GAUGE_US ||
                   f->type == METRIC_TIME;
    if (!seconds)
        return buf_addf(b, " %" PRId64 "\n", v);
    return buf_addf(b, " %" PRId64 ".%06" PRId64 "\n", v / 1000000, v % 1000000);
}

static int write_name(const struct series *s, const char *part, const char *more)
{
    int rc = buf_addf(s->b, "%s%s", s->f->name, part);
    bool both = s->labels[0] != '\0' && more[0] != '\0';
    if (rc == 0 && (s->labels[0] != '\0' || more[0] != '\0'))
        rc = buf_addf(s->b, "{%s%s%s}", s->labels, both ? "," : "", more);
    return rc;
}

static int write_histogram(const struct series *s, unsigned cell)
{
    bool time = s->f->type == METRIC_TIME;
    unsigned n = time ? METRIC_N_TIME : METRIC_N_SIZE;
    uint64_t sum = 0;
    char le[48];
    int rc = 0;
    /* The count is the last bucket's by construction, whatever is counted meanwhile. */
    for (unsigned i = 0; rc == 0 && i <= n; i++) {
        sum += (uint64_t)s->v[cell + i];
        if (i == n)
            (void)snprintf(le, sizeof(le), "le=\"+Inf\"");
        else if (time)
            (void)snprintf(le, sizeof(le), "le=\"%g\"", (double)metric_time_bounds[i] / 1e6);
        else
            (void)snprintf(le, sizeof(le), "le=\"%" PRIu64 "\"", metric_size_bounds[i]);
        rc = write_name(s, "_bucket", le);
        if (rc == 0)
            rc = buf_addf(s->b, " %" PRIu64 "\n", sum);
    }
    if (rc == 0)
        rc = write_name(s, "_sum", "");
    if (rc == 0)
        rc = number(s->b, s->f, s->v[cell + n + 1]);
    if (rc == 0)
        rc = write_name(s, "_count", "");
    return rc == 0 ? buf_addf(s->b, " %" PRIu64 "\n", sum) : rc;
}

static int write_series(struct series *s, const char *one, const char *two, unsigned cell)
{
    bool both = one[0] != '\0' && two[0] != '\0';
    (void)snprintf(s->labels, sizeof(s->labels), "%s%s%s", one, both ? "," : "", two);
    if (s->f->type == METRIC_TIME || s->f->type == METRIC_SIZE)
        return write_histogram(s, cell);
    int rc = write_name(s, suffix(s->f), "");
    return rc == 0 ? number(s->b, s->f, s->v[cell]) : rc;
}

static int write_family(struct buf *b, const struct metric_family *f, const int64_t *v)
{
    static const char *const types[] = {
        [METRIC_COUNTER] = "counter", [METRIC_COUNTER_US] = "counter", [METRIC_GAUGE] = "gauge",
        [METRIC_GAUGE_US] = "gauge",  [METRIC_TIME] = "histogram",     [METRIC_SIZE] = "histogram",
    };
    struct series s = {.b = b, .f = f, .v = v};
    unsigned width = (f->last - f->first + 1) / (f->n_labels[0] * f->n_labels[1]);
    int rc = buf_addf(b, "# HELP %s%s %s\n# TYPE %s%s %s\n", f->name, suffix(f), f->help, f->name,
                      suffix(f), types[f->type]);
    for (unsigned i = 0; rc == 0 && i < f->n_labels[0]; i++) {
        for (unsigned k = 0; rc == 0 && k < f->n_labels[1]; k++) {
            if (f->labels[0][i] == NULL || f->labels[1][k] == NULL)
                continue;
            rc = write_series(&s, f->labels[0][i], f->labels[1][k],
                              f->first + (i * f->n_labels[1] + k) * width);
        }
    }
    return rc;
}

int exposition_write(struct buf *b, const int64_t v[METRIC_CELLS])
{
    int rc = buf_addf(b,
                      "# HELP batchfetch_build_info What is running; always 1.\n"
                      "# TYPE batchfetch_build_info gauge\n"
                      "batchfetch_build_info{version=\"%s\"} 1\n",
                      batchfetch_version);
    for (unsigned i = 0; rc == 0 && i < metric_n_families; i++)
        rc = write_family(b, &metric_families[i], v);
    return rc;
}
