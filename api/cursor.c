/* Cursors: 22 bytes (version, kind, batch, key, check) as 30 characters of base64url. Pure. */
#include "api/cursor.h"

#include <string.h>

enum { VERSION = 1, RAW = 22, TEXT = 30 };

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void put(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t take(const uint8_t *p, int bytes)
{
    uint64_t v = 0;

    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static uint32_t check(const uint8_t *raw)
{
    uint64_t h = hash64(raw, RAW - 4, 0x62617463686375ULL);

    return (uint32_t)(h ^ (h >> 32));
}

void cursor_format(char out[CURSOR_SIZE], enum cursor_kind kind, int64_t batch, int64_t key)
{
    uint8_t raw[RAW];
    uint32_t bits = 0;
    int n = 0;
    size_t o = 0;

    raw[0] = VERSION;
    raw[1] = (uint8_t)kind;
    put(raw + 2, (uint64_t)batch, 8);
    put(raw + 10, (uint64_t)key, 8);
    put(raw + 18, check(raw), 4);
    for (size_t i = 0; i < RAW; i++) {
        bits = (bits << 8) | raw[i];
        for (n += 8; n >= 6; n -= 6)
            out[o++] = alphabet[(bits >> (n - 6)) & 63];
    }
    out[o++] = alphabet[(bits << (6 - n)) & 63];
    ASSERT(o == TEXT);
    out[o] = '\0';
}

int cursor_parse(const char *text, enum cursor_kind kind, int64_t batch, int64_t *key)
{
    uint8_t raw[RAW];
    uint32_t bits = 0;
    int n = 0;
    size_t o = 0;

    if (strlen(text) != TEXT)
        return E_INVAL;
    for (size_t i = 0; i < TEXT; i++) {
        const char *at = memchr(alphabet, text[i], 64);

        if (!at)
            return E_INVAL;
        bits = (bits << 6) | (uint32_t)(at - alphabet);
        n += 6;
        if (n >= 8) {
            n -= 8;
            raw[o++] = (uint8_t)(bits >> n);
        }
    }
    ASSERT(o == RAW);
    if ((bits & ((1u << n) - 1)) != 0) /* the spare bits of the last character */
        return E_INVAL;
    if (raw[0] != VERSION || raw[1] != (uint8_t)kind || take(raw + 18, 4) != check(raw) ||
        take(raw + 2, 8) != (uint64_t)batch)
        return E_INVAL;
    *key = (int64_t)take(raw + 10, 8);
    return *key < 0 ? E_INVAL : 0;
}
