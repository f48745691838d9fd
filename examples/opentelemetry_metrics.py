"""What OpenTelemetry is told of a pool, printed by its console exporter every minute, and at the end."""

import json
import sqlite3

from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricsData, PeriodicExportingMetricReader

import millpond
from millpond import opentelemetry


def names_only(data: MetricsData) -> str:
    metrics = [metric for of in data.resource_metrics for scope in of.scope_metrics for metric in scope.metrics]
    return json.dumps({metric.name: metric.unit for metric in metrics}) + "\n"


def main() -> None:
    provider = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter(formatter=names_only))])
    set_meter_provider(provider)
    opentelemetry.install()
    with millpond.Pool[sqlite3.Connection].from_url("sqlite:///:memory:", name="orders", max_size=5) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                conn.execute("select 1")
        provider.shutdown()


if __name__ == "__main__":
    main()
