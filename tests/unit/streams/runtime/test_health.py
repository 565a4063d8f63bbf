"""Health over HTTP, on a real port."""

import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from laxity.streams.runtime.health import HealthError, HealthServer, application
from laxity.streams.runtime.metrics import Metrics


def test_problems_are_told_with_503_and_metrics_parse() -> None:
    problems = {"live": list[str](), "ready": ["shard 2: restoring"]}
    metrics = Metrics(lambda: {("laxity.outcomes", 1): 7})
    app = application(
        live=lambda: problems["live"], ready=lambda: problems["ready"], registry=metrics.registry
    )
    server = HealthServer(app, host="127.0.0.1", port=0)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert client.get("/livez").json() == {"ok": True, "problems": []}
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["problems"]) == (503, ["shard 2: restoring"])
            problems["ready"].clear()
            assert client.get("/readyz").status_code == 200
            families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
            assert client.get("/other").status_code == 404
    finally:
        server.close()
    (lag,) = families["laxity_consumer_lag"].samples
    assert (lag.labels, lag.value) == ({"topic": "laxity.outcomes", "partition": "1"}, 7)
    assert all(name.startswith("laxity_") and families[name].documentation.endswith(".") for name in families)


def test_a_taken_port_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HealthError, match=str(port)):
            HealthServer(
                application(live=list, ready=list, registry=Metrics().registry), host="127.0.0.1", port=port
            )
