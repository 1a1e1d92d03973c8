/* Records of requests in pages, and the batch's defaults applied to them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/item.h"

static struct span text(const char *s)
{
    return (struct span){s, strlen(s)};
}

static void assert_span(struct span got, const char *want)
{
    if (want == NULL) {
        assert_null(got.ptr);
        return;
    }
    assert_non_null(got.ptr);
    assert_int_equal(got.len, strlen(want));
    assert_memory_equal(got.ptr, want, got.len);
}

static void every_field_survives(void **state)
{
    (void)state;
    const struct item in[] = {
        {.index = 0, .url = text("http://a/")},
        {.index = UINT32_MAX, .url = text("x"), .invalid = text("why")},
        {.index = 300,
         .url = text("https://b/"),
         .custom_id = text("id"),
         .method = text("POST"),
         .headers = text("A: b\n"),
         .body = {"\0\xff", 2},
         .timeout_ms = 1,
         .connect_timeout_ms = UINT32_MAX,
         .max_attempts = 20,
         .has_max_body_bytes = true,
         .max_body_bytes = 0},
        {.url = text("u"), .method = text("PUT"), .body = text("")},
        {.url = text("u"), .has_max_body_bytes = true, .max_body_bytes = 1ULL << 30},
    };
    struct buf b;
    buf_init(&b, 1024);
    for (size_t i = 0; i < ARRAY_LEN(in); i++)
        assert_int_equal(item_encode(&b, &in[i]), 0);
    size_t pos = 0;
    for (size_t i = 0; i < ARRAY_LEN(in); i++) {
        struct item it;
        assert_int_equal(item_decode(b.data, b.len, &pos, &it), 0);
        assert_int_equal(it.index, in[i].index);
        const struct span *x = &it.url, *y = &in[i].url;
        assert_int_equal(x->len, y->len);
        assert_memory_equal(x->ptr, y->ptr, x->len);
        assert_int_equal(it.invalid.ptr != NULL, in[i].invalid.ptr != NULL);
        assert_int_equal(it.custom_id.len, in[i].custom_id.len);
        assert_int_equal(it.method.len, in[i].method.len);
        assert_int_equal(it.headers.len, in[i].headers.len);
        assert_int_equal(it.body.ptr != NULL, in[i].body.ptr != NULL); /* empty is not none */
        assert_int_equal(it.body.len, in[i].body.len);
        assert_int_equal(it.timeout_ms, in[i].timeout_ms);
        assert_int_equal(it.connect_timeout_ms, in[i].connect_timeout_ms);
        assert_int_equal(it.max_attempts, in[i].max_attempts);
        assert_int_equal(it.has_max_body_bytes, in[i].has_max_body_bytes);
        assert_int_equal(it.max_body_bytes, in[i].max_body_bytes);
    }
    assert_int_equal(pos, b.len);
    buf_fini(&b);
}

/* Whatever is cut or overwritten: an error or another record, never a read outside. */
static void damaged_records_are_refused(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1024);
    struct item it = {.index = 7, .url = text("http://a/"), .method = text("GET"), .timeout_ms = 5};
    assert_int_equal(item_encode(&b, &it), 0);
    for (size_t n = 0; n < b.len; n++) {
        char *cut = xmalloc(n + 1); /* exactly as long: the sanitizer watches its end */
        memcpy(cut, b.data, n);
        size_t pos = 0;
        assert_int_equal(item_decode(cut, n, &pos, &it), E_CORRUPT);
        assert_int_equal(pos, 0);
        free(cut);
    }
    b.data[0] = 16; /* a flag that we do not write */
    size_t pos = 0;
    assert_int_equal(item_decode(b.data, b.len, &pos, &it), E_CORRUPT);
    buf_fini(&b);
}

static void what_is_given_wins_over_the_defaults(void **state)
{
    (void)state;
    struct buf joined;
    buf_init(&joined, 1024);
    struct item d = {.method = text("POST"),
                     .headers = text("Accept: a\nX-One: 1\n"),
                     .body = text("default"),
                     .timeout_ms = 10,
                     .max_attempts = 2,
                     .has_max_body_bytes = true,
                     .max_body_bytes = 5};
    struct item it = {.url = text("u"), .headers = text("accept: b\n"), .timeout_ms = 20};
    assert_int_equal(item_apply_defaults(&it, &d, &joined), 0);
    assert_span(it.method, "POST");
    assert_span(it.body, "default");
    assert_span(it.headers, "X-One: 1\naccept: b\n");
    assert_int_equal(it.timeout_ms, 20);
    assert_int_equal(it.max_attempts, 2);
    assert_int_equal(it.max_body_bytes, 5);

    /* A request that names its method says itself whether it has a body. */
    struct item get = {.url = text("u"), .method = text("GET"), .has_max_body_bytes = true};
    assert_int_equal(item_apply_defaults(&get, &d, &joined), 0);
    assert_span(get.body, NULL);
    assert_span(get.headers, "Accept: a\nX-One: 1\n");
    assert_int_equal(get.max_body_bytes, 0);
    buf_fini(&joined);
}

static void header_lines_are_walked(void **state)
{
    (void)state;
    struct span rest = text("A: b\nEmpty:\nC:  d e \n"), name, value;
    assert_true(item_next_header(&rest, &name, &value));
    assert_span(name, "A");
    assert_span(value, "b");
    assert_true(item_next_header(&rest, &name, &value));
    assert_span(name, "Empty");
    assert_int_equal(value.len, 0);
    assert_true(item_next_header(&rest, &name, &value));
    assert_span(value, "d e ");
    assert_false(item_next_header(&rest, &name, &value));
    assert_true(item_has_header(text("A: b\nC: d\n"), text("c")));
    assert_false(item_has_header(text("A: b\nC: d\n"), text("b")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_survives),
        cmocka_unit_test(damaged_records_are_refused),
        cmocka_unit_test(what_is_given_wins_over_the_defaults),
        cmocka_unit_test(header_lines_are_walked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
