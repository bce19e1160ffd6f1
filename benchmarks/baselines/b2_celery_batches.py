"""B2: a Celery worker that collects up to 32 messages and pads them in arrival order; otherwise like B1.

    celery -A benchmarks.baselines.b2_celery_batches worker --pool solo

The collector is our own, since celery-batches does not fit this Celery: the task only notes the id, and one thread
runs whatever has been noted, after a tenth of a second if that is fewer than 32.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from datetime import UTC, datetime
from typing import Any

from celery import Celery, signals
from sqlalchemy import select
from sqlalchemy.orm import Session

from benchmarks.baselines.status_rows import JobRow, engine, put

#: most messages that run together, seconds to wait for more
COLLECT, LINGER_S = 32, 0.1

app = Celery("b2", broker=os.environ.get("BASELINE_REDIS", "redis://127.0.0.1:1/0"))
app.conf.update(task_ignore_result=True, accept_content=["json"], task_default_queue="b2")

_noted: queue.Queue[int] = queue.Queue()


@app.task(name="b2.generate")
def generate(job_id: int) -> None:
    """Note a job for the next batch."""
    _noted.put(job_id)


@signals.worker_init.connect
def _begin(**_: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = os.environ["BASELINE_MODEL"]
    dtype = getattr(torch, os.environ.get("BASELINE_DTYPE", "float32"))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token_id = 0
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(os.environ.get("BASELINE_DEVICE", "cpu"))
    _texts(tokenizer, model.eval(), [{"prompt": "warm", "max_new_tokens": 4}])
    threading.Thread(target=_run, args=(tokenizer, model), daemon=True).start()


def _run(tokenizer: Any, model: Any) -> None:
    while True:
        ids = [_noted.get()]
        deadline = time.monotonic() + LINGER_S
        while len(ids) < COLLECT:
            try:
                ids.append(_noted.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        with Session(engine(os.environ["BASELINE_DATABASE"])) as session:
            rows = {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(ids)))}
            jobs = [rows[id_] for id_ in ids]
            for job in jobs:
                job.state, job.started_at = "running", datetime.now(UTC)
            session.commit()
            for job, text in zip(jobs, _texts(tokenizer, model, [job.params for job in jobs]), strict=True):
                job.output = put(f"{job.id}.txt", text.encode(), "text/plain")
                job.state, job.finished_at = "succeeded", datetime.now(UTC)
            session.commit()


def _texts(tokenizer: Any, model: Any, jobs: list[dict[str, Any]]) -> list[str]:
    import torch

    inputs = tokenizer([job["prompt"] for job in jobs], return_tensors="pt", padding=True).to(model.device)
    longest = max(job["max_new_tokens"] for job in jobs)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=longest, do_sample=False, pad_token_id=0)
    width = inputs["input_ids"].shape[1]
    return [tokenizer.decode(made[i, width : width + job["max_new_tokens"]]) for i, job in enumerate(jobs)]
