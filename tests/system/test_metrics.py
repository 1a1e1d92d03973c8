"""/metrics: what is counted is what happened."""


def test_type_and_build(service):
    answer = service.get("/metrics").expect(200)
    assert answer.header("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\nbatchfetch_ready 1\n" in answer.body
