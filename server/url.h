/* Parsing of http and https URLs: the one place where a URL is taken apart.
 *
 * Ordinary URLs (ASCII, RFC 3986 characters) take a fast path of our own that allocates nothing;
 * everything else goes through libcurl's parser (and libidn2 for names that are not ASCII), which
 * is also the one that fetches: what was checked is what is sent. Where the WHATWG URL standard
 * and libcurl see different hosts (backslashes, userinfo, control characters), the URL is refused.
 * Pure: any thread. */
#ifndef SERVER_URL_H
#define SERVER_URL_H

#include "server/base.h"
#include "storage/store.h"

enum {
    URL_MAX = 8192,     /* bytes of a URL, as given and as normalised */
    URL_HOST_MAX = 255, /* bytes of a host, as normalised */
};

struct url {
    bool https;
    bool host_is_ip;             /* a literal IPv4 or IPv6 address, in any of its spellings */
    uint16_t port;               /* explicit, or the scheme's default */
    char host[URL_HOST_MAX + 1]; /* lower case, punycode, without a trailing dot, no brackets;
                                     IPv4 numbers in dotted form */
    /* The URL to fetch, without fragment: points to the text given when that needed no change,
     * otherwise into `owned`. Not NUL-terminated in the first case. */
    struct span text;
    char *owned;
};

/* Returns 0, or E_INVAL with *why naming the reason in one short English clause that names no part
 * of the URL ("the scheme is not http or https", "it has no host", "it contains a space", "it is
 * longer than 8192 bytes", "it has a user name or password", "the port is out of range", ...).
 * On 0 the caller calls url_fini. */
int url_parse(struct url *u, const char *s, size_t len, const char **why) MUSTCHECK;
void url_fini(struct url *u); /* zeroed is fine */

/* Resolves a Location field value against the URL it came from (RFC 9110 10.2.2, RFC 3986 5.3);
 * *out is malloc'd, NUL-terminated. Returns 0 or E_INVAL. The result has not been through
 * url_parse yet. */
int url_resolve(const char *base, size_t base_len, const char *ref, size_t ref_len,
                char **out) MUSTCHECK;

/* Same origin: scheme, host and port (RFC 6454). */
bool url_same_origin(const struct url *a, const struct url *b);

#endif
