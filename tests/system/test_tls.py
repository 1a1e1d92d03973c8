"""Certificates are verified, always."""
import pytest

from origin import TLS


@pytest.fixture(scope="module")
def trusting(module_services, session_origin):
    return module_services("--ca-file", session_origin.ca_file)


def test_a_good_chain_succeeds(trusting, origin):
    result = trusting.one(origin.https("/bytes/10?t=tls"))
    assert result["status"] == "succeeded" and result["body"] == "tls|tls|tl"
    assert result["timing"]["tls_ms"] > 0


def test_a_name_of_the_certificate_succeeds(trusting, origin):
    for name in ("localhost", "good.test"):
        result = trusting.one(origin.https("/bytes/10", name))
        assert result["status"] == "succeeded", result


def test_another_name_of_a_right_address_fails(trusting, origin):
    result = trusting.one(origin.https("/bytes/10", "dead-first.test"))  # ends at 127.0.0.1
    assert result["error"]["code"] == "tls", result


@pytest.mark.parametrize("address", [a for a, kind in TLS.items() if kind != "good"],
                         ids=[k for k in TLS.values() if k != "good"])
def test_a_bad_certificate_fails_and_nothing_is_sent(trusting, origin, address):
    result = trusting.one(origin.https("/bytes/10", address), headers={"X-Secret": "s"})
    assert result["status"] == "failed" and result["error"]["code"] == "tls", result
    assert result["http_status"] is None and not result["error"]["retryable"]
    assert origin.arrivals() == 0


def test_without_our_ca_file_the_chain_is_unknown(start, origin):
    result = start().one(origin.https("/bytes/10"))
    assert result["error"]["code"] == "tls"


def test_http_on_an_https_port_and_the_other_way(trusting, origin):
    plain = trusting.one(origin.https("/bytes/10").replace("https:", "http:"))
    assert plain["http_status"] == 400  # nginx: a plain request to an https port
    tls = trusting.one(origin.url("/bytes/10").replace("http:", "https:"))
    assert tls["error"]["code"] == "tls", tls


def test_redirects_between_http_and_https_are_followed_and_verified(trusting, origin):
    good = trusting.one(origin.url("/redirect-to?url=" + origin.https("/echo")))
    assert good["status"] == "succeeded" and good["final_url"].startswith("https:")
    bad = trusting.one(origin.url("/redirect-to?url=" + origin.https("/echo", "127.0.0.3")))
    assert bad["error"]["code"] == "tls" and len(bad["redirects"]) == 1


def test_a_good_connection_does_not_vouch_for_another_host(trusting, origin):
    urls = [origin.https(f"/bytes/10?t={i}", host) for i in range(10)
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.7", "127.0.0.3")]
    for url, r in zip(urls, trusting.run(urls)):
        good = "127.0.0.1:" in url or "127.0.0.7:" in url
        assert (r["status"] == "succeeded") == good, r
