"""/readyz: whether the service takes new work, and if not, why. /healthz: whether it lives."""


def test_a_service_that_has_started_is_ready(service):
    answer = service.get("/readyz").expect(200)
    assert answer.json() == {"status": "ready", "causes": []}
    assert service.get("/healthz").expect(200).json() == {"status": "ok"}
