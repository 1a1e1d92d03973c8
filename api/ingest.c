/* POST /v1/batches: the body streams through submit.c into an upload of the engine, in constant
 * memory; when the disk is slower than the client, the connection is suspended until there is room.
 * api thread; the two callbacks at the keeper only note the outcome and wake the request. */
#include "api/ingest.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/answer.h"
#include "api/park.h"
#include "api/submit.h"
#include "api/view.h"
#include "server/metrics.h"
#include "storage/fault.h"

struct ingest {
    struct request *r;
    struct submit *submit;
    struct upload *upload;
    size_t held;             /* by submit, as counted */
    const char *key;         /* Idempotency-Key; NULL: none */
    EVP_MD_CTX *hash;        /* with a key */
    struct rebatch *rebatch; /* POST …/retry */
    void (*rebatch_free)(struct rebatch *);
    bool committing;
    bool done; /* the commit's outcome is in rc and view */
    int rc;
    struct batch_view view;
    struct ingest *prev, *next; /* in api->ingests */
};

/* ---- the header ---- */

static bool word_is(const char *p, size_t n, const char *word)
{
    return n == strlen(word) && strncasecmp(p, word, n) == 0;
}

static size_t trim(const char **p, const char *end)
{
    while (*p < end && (**p == ' ' || **p == '\t'))
        (*p)++;
    while (end > *p && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    return (size_t)(end - *p);
}

/* Every parameter of a media type but charset is ignored. */
static bool charset_is_utf8(const char *p)
{
    while (*p) {
        const char *end = p + strcspn(p, ";");
        const char *s = p;
        size_t n = trim(&s, end);

        if (n > 8 && strncasecmp(s, "charset=", 8) == 0) {
            const char *v = s + 8;
            size_t vn = n - 8;

            if (vn > 1 && v[0] == '"' && v[vn - 1] == '"') {
                v++;
                vn -= 2;
            }
            if (!word_is(v, vn, "utf-8") && !word_is(v, vn, "utf8"))
                return false;
        }
        p = *end ? end + 1 : end;
    }
    return true;
}

static int media_type(struct request *r, enum submit_type *out)
{
    const char *field = request_header(r, "Content-Type");
    const char *coding = request_header(r, "Content-Encoding");
    const char *p = field ? field : "";
    const char *end = p + strcspn(p, ";");
    size_t n = trim(&p, end);

    if (coding && strcasecmp(coding, "identity") != 0) {
        problem_set(&r->problem, PROBLEM_UNSUPPORTED_MEDIA_TYPE,
                    "a Content-Encoding of the submission is not supported");
        return E_INVAL;
    }
    if (!field || n == 0) {
        problem_set(&r->problem, PROBLEM_UNSUPPORTED_MEDIA_TYPE,
                    "there is no Content-Type: send application/json, application/x-ndjson or "
                    "text/plain");
        return E_INVAL;
    }
    if (word_is(p, n, "application/json"))
        *out = SUBMIT_JSON;
    else if (word_is(p, n, "application/x-ndjson"))
        *out = SUBMIT_NDJSON;
    else if (word_is(p, n, "text/plain"))
        *out = SUBMIT_TEXT;
    else if (word_is(p, n, "application/x-www-form-urlencoded")) {
        problem_set(&r->problem, PROBLEM_UNSUPPORTED_MEDIA_TYPE,
                    "application/x-www-form-urlencoded (curl's default) is not accepted; for a "
                    "list of URLs add -H 'Content-Type: text/plain', for JSON -H 'Content-Type: "
                    "application/json'");
        return E_INVAL;
    } else {
        problem_set(&r->problem, PROBLEM_UNSUPPORTED_MEDIA_TYPE,
                    "the Content-Type is none of application/json, application/x-ndjson and "
                    "text/plain");
        return E_INVAL;
    }
    if (!charset_is_utf8(end)) {
        problem_set(&r->problem, PROBLEM_UNSUPPORTED_MEDIA_TYPE, "the charset must be utf-8");
        return E_INVAL;
    }
    return 0;
}

static int idempotency_key(struct request *r, const char **out)
{
    const char *key = request_header(r, "Idempotency-Key");
    size_t n = key ? strlen(key) : 0;
    bool ok = n >= 1 && n <= 255 && request_header_count(r, "Idempotency-Key") == 1;

    *out = key;
    if (!key)
        return 0;
    for (size_t i = 0; i < n; i++)
        ok = ok && key[i] > 0x20 && key[i] < 0x7f;
    if (!ok) {
        problem_set(&r->problem, PROBLEM_INVALID_FIELD, "the Idempotency-Key is not valid");
        problem_add_header(&r->problem, "Idempotency-Key",
                           "must be given once, as 1 to 255 visible ASCII characters");
        return E_INVAL;
    }
    for (struct ingest *i = r->api->ingests; i; i = i->next)
        if (i->key && strcmp(i->key, key) == 0) {
            problem_set(&r->problem, PROBLEM_CONFLICT,
                        "another submission with this Idempotency-Key is under way");
            return E_INVAL;
        }
    return 0;
}

/* The content that a key stands for: kind, query and body, the first two with their lengths, so
 * that no two contents give the same stream. */
static int hash_begin(struct ingest *in, const char *kind)
{
    const char *query = request_query_text(in->r);
    char head[128];

    (void)snprintf(head, sizeof(head), "%s %zu ", kind, strlen(query));
    in->hash = EVP_MD_CTX_new();
    if (!in->hash || EVP_DigestInit_ex(in->hash, EVP_sha256(), NULL) != 1 ||
        EVP_DigestUpdate(in->hash, head, strlen(head)) != 1 ||
        EVP_DigestUpdate(in->hash, query, strlen(query)) != 1)
        return E_NOMEM;
    return 0;
}

/* ---- the body ---- */

static int sink_add(void *arg, const struct item *it, const char *host)
{
    struct ingest *in = arg;

    return upload_add(in->upload, it, host);
}

static void make_submit(struct ingest *in, enum submit_type type)
{
    const struct query *q = &in->r->query;
    const struct config *cfg = in->r->api->cfg;
    struct submit_param *params = xcalloc(q->n + 1, sizeof(*params));
    struct submit_config sc = {
        .type = type,
        .params = params,
        .n_params = q->n,
        .max_body_bytes = cfg->max_body_bytes,
        .max_expires_s = cfg->retain_s > 0 ? cfg->retain_s : SUBMIT_EXPIRES_MAX,
        .element_max = engine_memory(in->r->api->engine)->element_max,
        .max_urls = cfg->max_urls,
        .sink = {sink_add, in},
    };

    for (size_t i = 0; i < q->n; i++) {
        params[i].name = (struct span){q->v[i].name, strlen(q->v[i].name)};
        params[i].value = (struct span){q->v[i].value, strlen(q->v[i].value)};
    }
    in->submit = submit_new(&sc);
    free(params);
}

/* Makes the parser's problem the request's. */
static void take_problem(struct ingest *in)
{
    const struct problem *p = submit_problem(in->submit);

    if (!p) {
        problem_set(&in->r->problem, PROBLEM_INTERNAL, "unexpected internal error");
        return;
    }
    if (p->type == PROBLEM_DISK_FULL) { /* more is known of it than the parser was told */
        request_fail(in->r, E_FULL, "storing a submission");
        return;
    }
    problem_set(&in->r->problem, p->type, "%s", p->detail);
    for (uint32_t i = 0; i < p->n_errors; i++)
        problem_add(&in->r->problem, &p->errors[i]);
}

static int begin(struct request *r, const char *key, const char *kind)
{
    struct api *api = r->api;
    struct ingest *in = xcalloc(1, sizeof(*in));
    int rc;

    in->r = r;
    in->key = key;
    in->next = api->ingests;
    if (in->next)
        in->next->prev = in;
    api->ingests = in;
    r->ingest = in;
    rc = upload_new(api->engine, &in->upload);
    if (rc == 0 && key)
        rc = hash_begin(in, kind);
    if (rc != 0) {
        request_fail(r, rc, "starting an upload");
        return E_INVAL;
    }
    return 0;
}

int ingest_begin(struct request *r)
{
    struct api *api = r->api;
    enum submit_type type;
    const char *key;
    char kind[16];
    struct ingest *in;
    int rc;

    if (media_type(r, &type) != 0 || idempotency_key(r, &key) != 0)
        return E_INVAL;
    (void)snprintf(kind, sizeof(kind), "%d", (int)type);
    if (r->length != UINT64_MAX && r->length > api->cfg->max_submission_bytes) {
        problem_set(&r->problem, PROBLEM_TOO_LARGE,
                    "a submission may have %llu bytes (--max-submission-bytes)",
                    (unsigned long long)api->cfg->max_submission_bytes);
        return E_INVAL;
    }
    rc = begin(r, key, kind);
    if (rc != 0)
        return rc;
    in = r->ingest;
    make_submit(in, type);
    if (r->has_body && submit_problem(in->submit)) { /* the query is wrong already */
        take_problem(in);
        return E_INVAL;
    }
    return 0;
}

/* keeper */
static void on_room(void *arg)
{
    park_wake(arg);
}

/* The submission is refused for its size: nothing more of it is read. */
static enum MHD_Result cut(struct request *r)
{
    answer_raw(r);
    return MHD_NO;
}

enum MHD_Result ingest_body(struct request *r, const char *data, size_t *size)
{
    struct ingest *in = r->ingest;
    size_t consumed = 0;
    int rc;

    /* The library goes on with the next chunk of its buffer although we have suspended. */
    if (park_is_suspended(r))
        return MHD_YES;
    r->body_seen += *size;
    if (r->body_seen > r->api->cfg->max_submission_bytes) {
        problem_set(&r->problem, PROBLEM_TOO_LARGE,
                    "a submission may have %llu bytes (--max-submission-bytes)",
                    (unsigned long long)r->api->cfg->max_submission_bytes);
        return cut(r);
    }
    if (in->hash && EVP_DigestUpdate(in->hash, data, *size) != 1)
        return MHD_NO;
    rc = submit_feed(in->submit, data, *size, &consumed);
    ASSERT(rc == SUBMIT_FAILED || consumed == *size); /* our sink never pauses in the middle */
    if (rc == SUBMIT_FAILED) {
        r->swallowed += *size;
        *size = 0;
        if (r->swallowed <= SWALLOW_MAX)
            return MHD_YES;
        take_problem(in);
        return cut(r);
    }
    *size = 0;
    upload_charge(in->upload, &in->held, submit_held(in->submit));
    if (in->held > SUBMIT_HELD_SMALL && upload_crowded(in->upload, in->held)) {
        metric_add(METRIC_PRESSURE + METRIC_PRESSURE_UPLOADS, 1);
        request_fail(r, E_BUSY, "upload");
        return cut(r);
    }
    if (!park_arm(r)) {
        request_fail(r, E_STOPPING, "upload");
        return cut(r);
    }
    if (!upload_wait(in->upload, on_room, r)) {
        park_disarm(r);
        return MHD_YES;
    }
    (void)park_suspend(r); /* not suspended: there is room again already */
    return MHD_YES;
}

/* ---- the commit ---- */

/* keeper */
static void on_commit(void *arg, int rc, const struct batch_view *v)
{
    struct ingest *in = arg;

    in->rc = rc;
    if (rc == 0 || rc == E_EXISTS) {
        in->view = *v;
        if (batch_copy(&in->view.b, &v->b) != 0)
            in->rc = E_NOMEM;
    }
    in->done = true;
    park_wake(in->r);
}

static enum MHD_Result answer_commit(struct request *r)
{
    struct ingest *in = r->ingest;
    struct MHD_Response *resp;
    char location[STORE_BATCH_ID_SIZE + 32];

    if (in->rc == E_CONFLICT)
        return answer_fail(r, PROBLEM_IDEMPOTENCY_KEY_REUSED,
                           "this Idempotency-Key was used before, with other content");
    if (in->rc != 0 && in->rc != E_EXISTS) {
        request_fail(r, in->rc, "accepting a batch");
        return answer_problem(r);
    }
    FAULT_POINT("submission.answer.before");
    resp = view_batch_response(&in->view);
    (void)snprintf(location, sizeof(location), "/v1/batches/%s", in->view.b.id);
    answer_header(resp, "Location", location);
    (void)snprintf(r->id, sizeof(r->id), "%s", in->view.b.id); /* for the log */
    if (in->rc == E_EXISTS)
        answer_header(resp, "Idempotent-Replayed", "true");
    return answer_send(r, 202, resp, NULL);
}

enum MHD_Result ingest_commit(struct request *r, struct upload_settings *s)
{
    struct ingest *in = r->ingest;

    if (in->done)
        return answer_commit(r);
    s->idem_key = in->key;
    if (in->hash && EVP_DigestFinal_ex(in->hash, s->idem_hash, NULL) != 1)
        return answer_fail(r, PROBLEM_INTERNAL, "the content could not be hashed");
    if (!park_arm(r)) {
        request_fail(r, E_STOPPING, "accepting a batch");
        return answer_problem(r);
    }
    in->committing = true;
    upload_commit(in->upload, s, on_commit, in);
    if (park_suspend(r))
        return MHD_YES;
    return answer_commit(r);
}

enum MHD_Result ingest_finish(struct request *r)
{
    struct ingest *in = r->ingest;
    struct upload_settings settings;

    if (in->done)
        return answer_commit(r);
    if (submit_finish(in->submit) != 0) {
        take_problem(in);
        return answer_problem(r);
    }
    settings = *submit_settings(in->submit);
    return ingest_commit(r, &settings);
}

/* ---- a batch that is made by us ---- */

int ingest_make(struct request *r, const char *content)
{
    const char *key;

    if (idempotency_key(r, &key) != 0)
        return E_INVAL;
    return begin(r, key, content);
}

struct upload *ingest_upload(const struct request *r)
{
    return r->ingest->upload;
}

bool ingest_committing(const struct request *r)
{
    return r->ingest->committing;
}

void ingest_own(struct request *r, struct rebatch *b, void (*free_fn)(struct rebatch *))
{
    r->ingest->rebatch = b;
    r->ingest->rebatch_free = free_fn;
}

struct rebatch *ingest_owned(const struct request *r)
{
    return r->ingest ? r->ingest->rebatch : NULL;
}

void ingest_count(const struct request *r)
{
    unsigned outcome = METRIC_SUBMISSION_ABORTED;

    if (r->status >= 500)
        outcome = METRIC_SUBMISSION_FAILED;
    else if (r->status >= 400)
        outcome = METRIC_SUBMISSION_REFUSED;
    else if (r->status != 0)
        outcome = r->ingest->rc == E_EXISTS ? METRIC_SUBMISSION_REPEATED
                                            : METRIC_SUBMISSION_ACCEPTED;
    metric_add(METRIC_SUBMISSIONS + outcome, 1);
    metric_add(METRIC_PRESSURE + METRIC_PRESSURE_BUSY, r->problem.type == PROBLEM_BUSY);
}

void ingest_free(struct request *r)
{
    struct ingest *in = r->ingest;

    if (!in)
        return;
    if (r->status == 0)
        ingest_count(r);
    if (in->prev)
        in->prev->next = in->next;
    else
        r->api->ingests = in->next;
    if (in->next)
        in->next->prev = in->prev;
    submit_free(in->submit);
    if (in->upload)
        upload_charge(in->upload, &in->held, 0);
    if (in->rebatch)
        in->rebatch_free(in->rebatch);
    upload_release(in->upload);
    EVP_MD_CTX_free(in->hash);
    batch_view_fini(&in->view);
    free(in);
    r->ingest = NULL;
}
