"""Pictures into S3, as it is and with every request 100 ms slower."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

from benchmarks.arms import Deployment, together
from benchmarks.measure import Bench, Measured
from benchmarks.models import model
from benchmarks.work import pictures

DELAY_S = 0.1


def slow_storage(bench: Bench) -> list[Measured]:
    """A real S3 server (OpenStack Swift) behind a proxy, which holds each request for 100 ms in one of the arms."""
    from fault_proxies import HttpFaultProxy
    from swift_server import SwiftServer

    class Delaying(HttpFaultProxy):
        """Every request waits before it goes on; others do not wait for it."""

        delay_s = 0.0
        waited = 0
        _count = threading.Lock()

        def _answer(self, connection, request, fault):  # type: ignore[no-untyped-def]
            if self.delay_s:
                time.sleep(self.delay_s)
                with self._count:
                    self.waited += 1
            return super()._answer(connection, request, fault)

    folder = model("unet-256")
    with ExitStack() as stack:
        swift = stack.enter_context(SwiftServer())
        arms = {}
        for arm, delay_s in (("slow", DELAY_S), ("quiet", 0.0)):
            proxy = stack.enter_context(Delaying(swift.endpoint_url))
            settings = {
                "store_url": f"s3://{swift.new_bucket()}/out", "s3_endpoint_url": proxy.endpoint_url,
                "s3_access_key_id": swift.access_key, "s3_secret_access_key": swift.secret_key,
                "s3_addressing": "path",
            }  # fmt: skip
            arms[arm] = proxy, Deployment(bench.folder / arm, **settings)
            proxy.delay_s = delay_s
        stack.enter_context(together(*(pipeline for _, pipeline in arms.values())))
        jobs = pictures(folder, 4 if bench.plan.quick else 12, sides=(256,), steps=(4,))
        for _, pipeline in arms.values():
            pipeline.run(jobs)
        rate = arms["quiet"][1].run(jobs).sample().rate
        jobs = pictures(folder, bench.plan.size(rate, deal=4), sides=(256,), steps=(4,))
        rounds = bench.interleave(
            {arm: lambda pipeline=pipeline: pipeline.run(jobs).sample() for arm, (_, pipeline) in arms.items()}  # type: ignore[misc]
        )
        waited = arms["slow"][0].waited
    how = (
        f"from the first submit to the last commit; {len(jobs)} pictures of 256 px in 4 steps, webp, one object each; "
        f"{waited} requests were held for {1000 * DELAY_S:.0f} ms"
    )
    return [rounds.measured("slow_storage", "slow", "quiet", unit="pictures/s", how=how, openmp="passive")]
