/* The JSON scanner: takes bytes as they come, checks every one against RFC 8259 and tells where
 * values begin and end. It stands in front of cJSON because that takes far more than JSON
 * (trailing text, 01, raw controls, any bytes) and would build a tree of the whole document. No
 * state of its own; runs on whichever thread calls it. */
#include "api/json.h"

#include <string.h>

enum state {
    S_VALUE,        /* a value must come */
    S_VALUE_OR_END, /* behind '[' */
    S_NAME_OR_END,  /* behind '{' */
    S_NAME,         /* behind ',' in an object */
    S_COLON,
    S_AFTER, /* behind a value in a container */
    S_DOC_END,
    S_OFFERED, /* JSON_START was returned: the caller has to choose */
    S_ENTER,
    S_BEGIN,
    S_STRING,
    S_ESCAPE,
    S_HEX,
    S_LOW_SLASH, /* behind a high surrogate: '\' must come, then 'u' */
    S_LOW_U,
    S_UTF8,
    S_LITERAL,
    N_MINUS,
    N_ZERO,
    N_INT,
    N_DOT,
    N_FRAC,
    N_E,
    N_SIGN,
    N_EXP,
    S_BAD,
};

/* What a step returns: an event, and whether the byte was consumed. */
enum { USED = 0x100 };

void json_scan_init(struct json_scan *s, uint64_t at, uint64_t line)
{
    memset(s, 0, sizeof(*s));
    s->at = at;
    s->line = line;
    s->limit = UINT64_MAX;
    s->state = S_VALUE;
}

void json_enter(struct json_scan *s)
{
    ASSERT(s->state == S_OFFERED && !s->is_name && (s->first == '{' || s->first == '['));
    s->state = S_ENTER;
}

void json_take(struct json_scan *s)
{
    ASSERT(s->state == S_OFFERED);
    s->state = S_BEGIN;
    s->taking = true;
    s->take_depth = s->depth;
    s->start = s->at;
    s->escaped = false;
    s->flaw = NULL;
    s->values = 0;
}

static int bad(struct json_scan *s, const char *why)
{
    s->state = S_BAD;
    s->why = why;
    return JSON_BAD;
}

static void flaw(struct json_scan *s, const char *what)
{
    if (s->flaw == NULL)
        s->flaw = what;
}

/* A name, a scalar or a container is complete. */
static int value_end(struct json_scan *s)
{
    if (s->name_next) {
        s->name_next = false;
        s->state = S_COLON;
    } else {
        s->state = s->depth == 0 ? S_DOC_END : S_AFTER;
    }
    if (s->taking && s->depth == s->take_depth) {
        s->taking = false;
        return JSON_VALUE;
    }
    return JSON_MORE;
}

static int open_container(struct json_scan *s, bool array)
{
    if (s->depth == JSON_DEPTH_MAX)
        return bad(s, "nested deeper than 16 levels");
    s->depth++;
    if (array)
        s->arrays |= 1u << s->depth;
    else
        s->arrays &= ~(1u << s->depth);
    s->state = array ? S_VALUE_OR_END : S_NAME_OR_END;
    return USED;
}

static int close_container(struct json_scan *s)
{
    bool was_taking = s->taking;
    s->depth--;
    int ev = value_end(s);
    return USED | (was_taking ? ev : JSON_END);
}

/* The first byte of a value or name that is inside what is taken. */
static int begin_value(struct json_scan *s, char c)
{
    if (!s->name_next && ++s->values > JSON_VALUES_MAX)
        flaw(s, "has more than 1000 values in it");
    switch (c) {
    case '{': return open_container(s, false);
    case '[': return open_container(s, true);
    case '"': s->state = S_STRING; return USED;
    case 't':
        s->literal = "rue";
        s->state = S_LITERAL;
        return USED;
    case 'f':
        s->literal = "alse";
        s->state = S_LITERAL;
        return USED;
    case 'n':
        s->literal = "ull";
        s->state = S_LITERAL;
        return USED;
    case '-': s->state = N_MINUS; break;
    case '0': s->state = N_ZERO; break;
    default: s->state = N_INT; break;
    }
    s->num_at = s->at;
    return USED;
}

static int offer(struct json_scan *s, char c, bool name)
{
    bool value = (c >= '0' && c <= '9') || (c != 0 && strchr("\"{[tfn-", c) != NULL);
    if (name ? c != '"' : !value)
        return bad(s, name ? "expected a member name in double quotes" : "expected a value");
    s->name_next = name;
    if (s->taking)
        return begin_value(s, c);
    s->is_name = name;
    s->first = c;
    s->state = S_OFFERED;
    return JSON_START;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* Between values. */
static int step_structure(struct json_scan *s, char c)
{
    if (is_space(c)) {
        s->line += c == '\n';
        return USED;
    }
    switch (s->state) {
    case S_VALUE_OR_END:
        if (c == ']')
            return close_container(s);
        return offer(s, c, false);
    case S_VALUE: return offer(s, c, false);
    case S_NAME_OR_END:
        if (c == '}')
            return close_container(s);
        return offer(s, c, true);
    case S_NAME: return offer(s, c, true);
    case S_COLON:
        if (c != ':')
            return bad(s, "expected ':' behind a member name");
        s->state = S_VALUE;
        return USED;
    case S_AFTER: {
        bool array = (s->arrays >> s->depth) & 1;
        if (c == ',') {
            s->state = array ? S_VALUE : S_NAME;
            return USED;
        }
        if (c == (array ? ']' : '}'))
            return close_container(s);
        return bad(s, array ? "expected ',' or ']' behind a value"
                            : "expected ',' or '}' behind a value");
    }
    default: return bad(s, "text behind the end of the document");
    }
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* A fault of an escape sequence is reported where that sequence begins. */
static int bad_escape(struct json_scan *s, const char *why)
{
    s->at = s->esc_at;
    return bad(s, why);
}

static int step_hex(struct json_scan *s, char c)
{
    int v = hex_value(c);
    if (v < 0)
        return bad_escape(s, "\\u needs four hexadecimal digits");
    s->code = s->code << 4 | (uint32_t)v;
    if (--s->esc_left > 0)
        return USED;
    bool low = s->code >= 0xdc00 && s->code <= 0xdfff;
    if (s->high != 0) {
        if (!low)
            return bad_escape(s, "a high surrogate without its low surrogate");
        s->high = 0;
    } else if (low) {
        return bad_escape(s, "a low surrogate without its high surrogate");
    } else if (s->code >= 0xd800 && s->code <= 0xdbff) {
        s->high = s->code;
        s->state = S_LOW_SLASH;
        return USED;
    } else if (s->code == 0) {
        flaw(s, "contains \\u0000");
    }
    s->state = S_STRING;
    return USED;
}

static int begin_hex(struct json_scan *s)
{
    s->state = S_HEX;
    s->esc_left = 4;
    s->code = 0;
    return USED;
}

static int step_escape(struct json_scan *s, char c)
{
    if (s->state == S_LOW_SLASH || s->state == S_LOW_U) {
        if (c != (s->state == S_LOW_SLASH ? '\\' : 'u'))
            return bad_escape(s, "a high surrogate without its low surrogate");
        if (s->state == S_LOW_U)
            return begin_hex(s);
        s->state = S_LOW_U;
        return USED;
    }
    if (c == 'u') {
        s->high = 0;
        return begin_hex(s);
    }
    if (c == 0 || strchr("\"\\/bfnrt", c) == NULL)
        return bad_escape(s, "an escape sequence that JSON does not have");
    s->state = S_STRING;
    return USED;
}

/* A byte in a string that is not plain ASCII. */
static int step_string(struct json_scan *s, char ch)
{
    unsigned char c = (unsigned char)ch;
    if (c == '"')
        return USED | value_end(s);
    if (c == '\\') {
        s->escaped = true;
        s->esc_at = s->at;
        s->state = S_ESCAPE;
        return USED;
    }
    if (c < 0x20)
        return bad(s, "a control character in a string (it must be escaped)");
    if (c < 0x80)
        return USED;
    if (c < 0xc2 || c > 0xf4)
        return bad(s, "not UTF-8");
    s->utf8_left = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    s->utf8_lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    s->utf8_hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    s->state = S_UTF8;
    return USED;
}

static int step_utf8(struct json_scan *s, char ch)
{
    unsigned char c = (unsigned char)ch;
    if (c < s->utf8_lo || c > s->utf8_hi)
        return bad(s, "not UTF-8");
    s->utf8_lo = 0x80;
    s->utf8_hi = 0xbf;
    if (--s->utf8_left == 0)
        s->state = S_STRING;
    return USED;
}

static int step_literal(struct json_scan *s, char c)
{
    if (c != *s->literal)
        return bad(s, "expected a value (true, false and null are the only words)");
    s->literal++;
    return *s->literal == 0 ? USED | value_end(s) : USED;
}

static int number_end(struct json_scan *s)
{
    if (s->at - s->num_at > JSON_NUMBER_MAX)
        flaw(s, "has a number of more than 60 characters");
    return value_end(s);
}

static int step_number(struct json_scan *s, char c)
{
    bool digit = c >= '0' && c <= '9';
    switch (s->state) {
    case N_MINUS:
        if (!digit)
            return bad(s, "expected a digit behind '-'");
        s->state = c == '0' ? N_ZERO : N_INT;
        return USED;
    case N_ZERO:
        if (digit)
            return bad(s, "a number with a leading zero");
        break;
    case N_INT:
        if (digit)
            return USED;
        break;
    case N_DOT:
    case N_FRAC:
        if (digit) {
            s->state = N_FRAC;
            return USED;
        }
        if (s->state == N_DOT)
            return bad(s, "expected a digit behind the decimal point");
        break;
    default:
        if (digit) {
            s->state = N_EXP;
            return USED;
        }
        if (s->state == N_E && (c == '+' || c == '-')) {
            s->state = N_SIGN;
            return USED;
        }
        if (s->state != N_EXP)
            return bad(s, "expected a digit in the exponent");
        return number_end(s);
    }
    if (c == '.' && s->state != N_FRAC) {
        s->state = N_DOT;
        return USED;
    }
    if (c == 'e' || c == 'E') {
        s->state = N_E;
        return USED;
    }
    return number_end(s); /* the byte belongs to what follows */
}

static int step(struct json_scan *s, char c)
{
    switch (s->state) {
    case S_STRING: return step_string(s, c);
    case S_ESCAPE:
    case S_LOW_SLASH:
    case S_LOW_U: return step_escape(s, c);
    case S_HEX: return step_hex(s, c);
    case S_UTF8: return step_utf8(s, c);
    case S_LITERAL: return step_literal(s, c);
    case S_ENTER: return open_container(s, c == '[');
    case S_BEGIN: return begin_value(s, c);
    case S_BAD: return JSON_BAD;
    case N_MINUS:
    case N_ZERO:
    case N_INT:
    case N_DOT:
    case N_FRAC:
    case N_E:
    case N_SIGN:
    case N_EXP: return step_number(s, c);
    default: ASSERT(s->state != S_OFFERED); return step_structure(s, c);
    }
}

/* How many bytes from p are printable ASCII other than '"' and '\': eight at a time. */
static size_t plain_run(const char *p, size_t n)
{
    const uint64_t ones = 0x0101010101010101u, highs = 0x8080808080808080u;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v;
        memcpy(&v, p + i, 8);
        uint64_t quote = v ^ (ones * '"'), slash = v ^ (ones * '\\');
        uint64_t hit = (v - ones * 0x20) | (quote - ones) | (slash - ones) | v;
        if (hit & highs) /* may be a false alarm next to a true one only: the loop below decides */
            break;
    }
    while (i < n && (unsigned char)p[i] >= 0x20 && (unsigned char)p[i] < 0x80 && p[i] != '"' &&
           p[i] != '\\')
        i++;
    return i;
}

enum json_event json_next(struct json_scan *s, const char *p, size_t n, size_t *pos)
{
    uint64_t base = s->at - *pos;
    size_t i = *pos, end = n;
    if (s->state == S_BAD)
        return JSON_BAD;
    if (s->limit <= s->at)
        end = i;
    else if (s->limit - s->at < n - i)
        end = i + (size_t)(s->limit - s->at);
    while (i < end) {
        if (s->state == S_STRING) {
            i += plain_run(p + i, end - i);
            if (i == end)
                break;
        }
        s->at = base + i;
        int r = step(s, p[i]);
        i += (r & USED) != 0;
        r &= ~USED;
        if (r == JSON_MORE)
            continue;
        if (r != JSON_BAD)
            s->at = base + i;
        *pos = i;
        return (enum json_event)r;
    }
    s->at = base + i;
    *pos = i;
    return i < n ? JSON_LARGE : JSON_MORE;
}

enum json_event json_finish(struct json_scan *s)
{
    switch (s->state) {
    case S_DOC_END: return JSON_MORE;
    case S_BAD: return JSON_BAD;
    case N_ZERO:
    case N_INT:
    case N_FRAC:
    case N_EXP:
        if (s->depth == 0)
            return (enum json_event)number_end(s);
        break;
    case S_VALUE:
        if (s->depth == 0)
            return (enum json_event)bad(s, "there is no JSON value");
        break;
    default: break;
    }
    return (enum json_event)bad(s, "the document ends too early");
}
