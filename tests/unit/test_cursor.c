/* Cursors: every key comes back, and nothing that was changed is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "api/cursor.h"

static void round_trip(void **state)
{
    static const int64_t keys[] = {0, 1, 63, 255, 256, 65535, 1000000, INT32_MAX, INT64_MAX};
    static const int64_t batches[] = {0, 1, 12345, INT32_MAX, INT64_MAX};

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        for (size_t j = 0; j < sizeof(batches) / sizeof(batches[0]); j++)
            for (int kind = CURSOR_COMPLETION; kind <= CURSOR_LIST; kind++) {
                char text[CURSOR_SIZE];
                int64_t key = -1;

                cursor_format(text, (enum cursor_kind)kind, batches[j], keys[i]);
                assert_int_equal(strlen(text), 30);
                assert_int_equal(cursor_parse(text, (enum cursor_kind)kind, batches[j], &key), 0);
                assert_int_equal(key, keys[i]);
            }
}

static void is_bound(void **state)
{
    char text[CURSOR_SIZE];
    int64_t key;

    (void)state;
    cursor_format(text, CURSOR_COMPLETION, 7, 100);
    assert_int_equal(cursor_parse(text, CURSOR_COMPLETION, 8, &key), E_INVAL);
    assert_int_equal(cursor_parse(text, CURSOR_INDEX, 7, &key), E_INVAL);
    assert_int_equal(cursor_parse(text, CURSOR_LIST, 7, &key), E_INVAL);
}

static void tampering(void **state)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    char text[CURSOR_SIZE], changed[CURSOR_SIZE + 2];
    int64_t key;

    (void)state;
    cursor_format(text, CURSOR_INDEX, 7, 100);
    for (size_t i = 0; text[i]; i++)
        for (size_t a = 0; alphabet[a]; a++) {
            memcpy(changed, text, sizeof(text));
            changed[i] = alphabet[a];
            if (changed[i] != text[i])
                assert_int_equal(cursor_parse(changed, CURSOR_INDEX, 7, &key), E_INVAL);
        }
    memcpy(changed, text, sizeof(text));
    changed[29] = '\0';
    assert_int_equal(cursor_parse(changed, CURSOR_INDEX, 7, &key), E_INVAL);
    memcpy(changed, text, sizeof(text));
    changed[30] = 'A';
    changed[31] = '\0';
    assert_int_equal(cursor_parse(changed, CURSOR_INDEX, 7, &key), E_INVAL);
    memcpy(changed, text, sizeof(text));
    changed[3] = '=';
    assert_int_equal(cursor_parse(changed, CURSOR_INDEX, 7, &key), E_INVAL);
    assert_int_equal(cursor_parse("", CURSOR_INDEX, 7, &key), E_INVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(is_bound),
        cmocka_unit_test(tampering),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
