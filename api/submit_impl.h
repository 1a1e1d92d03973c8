/* Shared by submit.c (reading of the stream), submit_fields.c and submit_batch.c (what the fields
 * of a request and of the batch mean), submit_query.c and submit_faults.c. Private to them. */
#ifndef API_SUBMIT_IMPL_H
#define API_SUBMIT_IMPL_H

#include <cjson/cJSON.h>

#include "api/json.h"
#include "api/submit.h"

/* Where in the submission something stands: what an error names. */
struct spot {
    uint64_t line;      /* NDJSON and text; 0: not one of these */
    bool query;         /* a query parameter: segments joined by dots */
    unsigned n;         /* segments of the JSON pointer */
    const char *seg[6]; /* unescaped */
};

/* Memory that an item's spans may point to. */
struct scratch {
    struct buf headers, body;
};

/* A request with a body and without a method: right or wrong by defaults.method, which may come
 * later in the document. */
struct pending {
    uint64_t index, line;
    bool base64;
};

/* Members of the document. */
enum member {
    MEMBER_NONE, /* unknown, or given twice: its value is read over */
    MEMBER_URLS,
    MEMBER_REQUESTS,
    MEMBER_DEFAULTS,
    MEMBER_LIMITS,
    MEMBER_MAX_REDIRECTS,
    MEMBER_IGNORE,
    MEMBER_NAME,
    MEMBER_METADATA,
    MEMBER_PRIORITY,
    MEMBER_HTTP_VERSION,
    MEMBER_RETRY,
    MEMBER_EXPIRES,
};

enum level { LEVEL_DOCUMENT, LEVEL_MEMBERS, LEVEL_ARRAY };

struct submit {
    struct submit_config cfg;
    struct upload_settings settings;
    bool ignore, ignore_known; /* ignore_invalid_urls */

    /* what is wrong */
    bool fatal; /* `problem` is final */
    struct problem problem;
    struct problem field_list, url_list; /* only their lists are used */
    uint64_t n_field_errors, n_invalid_urls;

    /* the stream */
    unsigned bom;           /* bytes of a byte order mark seen; BOM_DONE */
    struct buf part;        /* a value or line that came in several pieces */
    uint64_t given;         /* requests that went to the sink */
    uint64_t index;         /* of the request being read */
    struct scratch scratch; /* of the request being read */

    /* lines */
    uint64_t line;   /* lines ended so far */
    uint64_t offset; /* where the line began */

    /* the JSON document */
    struct json_scan scan;
    enum level level;
    bool taking;
    enum member member;   /* whose value is being read */
    unsigned seen;        /* bit set of enum member */
    bool skip_array;      /* the second one of urls and requests */
    uint64_t array_start; /* where the array being read began */
    uint64_t array_bytes; /* of arrays read: they don't count as "outside" */

    /* held for settings */
    cJSON *defaults_tree;
    struct scratch defaults_scratch;
    char *name;
    struct buf metadata;
    struct pending pending[PROBLEM_ERRORS_MAX];
    uint64_t n_pending;
};

struct spot spot_in(const struct spot *at, const char *segment);
/* Counts, and lists the first PROBLEM_ERRORS_MAX. */
void submit_error(struct submit *s, const struct spot *at, const char *fmt, ...) PRINTF_LIKE(3, 4);
void submit_url_error(struct submit *s, const struct spot *at, const char *why);
void submit_unknown(struct submit *s, const struct spot *at, const char *given,
                    const char *const *names, size_t n);

/* Sets the problem, for good. */
#define FATAL(s, type, ...) (problem_set(&(s)->problem, type, __VA_ARGS__), (s)->fatal = true)
void submit_malformed(struct submit *s, const struct json_scan *scan, uint64_t line);
void submit_too_large(struct submit *s, const struct spot *at, const char *detail);
void submit_sink_failed(struct submit *s, int rc);
/* Whether the submission can't be accepted any more. */
bool submit_is_refused(const struct submit *s);
/* Makes `problem` of the lists, if there is anything in them. */
void submit_conclude(struct submit *s);

enum { SUBMIT_HINT_SIZE = 128, SUBMIT_ATTEMPTS_MAX = 20 };

/* Where a field that is not known at `at` does belong, as words behind "did you mean"; NULL: it is
 * not known anywhere. */
const char *submit_elsewhere(const struct spot *at, const char *name, char out[SUBMIT_HINT_SIZE]);

/* Values of one type; what is wrong is listed, and the value then is zero. */
bool submit_read_object(struct submit *s, const cJSON *v, const struct spot *at);
/* max is at most 2^50. */
uint64_t submit_read_uint(struct submit *s, const cJSON *v, const struct spot *at, uint64_t min,
                          uint64_t max);
/* Bounds in bytes. */
struct span submit_read_string(struct submit *s, const cJSON *v, const struct spot *at, size_t min,
                               size_t max);

enum member submit_member(const char *name);
extern const char *const submit_member_names[];
extern const size_t submit_n_members;
extern const char *const submit_request_names[];
extern const size_t submit_n_request_names;
enum { SUBMIT_REQUEST_ONLY = 2 }; /* the first two of them are not for `defaults` */

/* Reads the value of a small member into the settings. Takes over v. */
void submit_read_member(struct submit *s, enum member m, cJSON *v, const struct spot *at);
/* Reads a request object. Returns whether it was in order; else errors were listed. */
bool submit_read_request(struct submit *s, const cJSON *v, const struct spot *at, bool defaults,
                         struct item *it, struct scratch *scratch);
/* Reads the query's settings. */
void submit_read_query(struct submit *s, const struct submit_param *params, size_t n);
/* Whether this method may have a body. */
bool submit_takes_body(struct span method);

#endif
