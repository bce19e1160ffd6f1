"""B1: one Celery task per job. The model stays in memory; each task is one call of it, with a status row by ORM.

    celery -A benchmarks.baselines.b1_celery worker --concurrency 1

Its settings come from the environment: BASELINE_REDIS, BASELINE_DATABASE, BASELINE_OUT (a folder) or
BASELINE_S3_BUCKET, BASELINE_KIND (`text` or `pictures`), BASELINE_MODEL, BASELINE_DEVICE, BASELINE_DTYPE.
"""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from typing import Any

from celery import Celery, signals
from sqlalchemy.orm import Session

from benchmarks.baselines.status_rows import JobRow, engine, put

app = Celery("b1", broker=os.environ.get("BASELINE_REDIS", "redis://127.0.0.1:1/0"))
app.conf.update(task_ignore_result=True, accept_content=["json"], task_default_queue="b1")

_made: Any = None


@signals.worker_process_init.connect
def _load(**_: Any) -> None:
    global _made  # noqa: PLW0603 - one model per process
    made = _Texts() if os.environ["BASELINE_KIND"] == "text" else _Pictures()
    made.warm_up()
    _made = made


@app.task(name="b1.generate")
def generate(job_id: int) -> None:
    """Run one job: read its row, call the model, store the output, say so."""
    with Session(engine(os.environ["BASELINE_DATABASE"])) as session:
        job = session.get_one(JobRow, job_id)
        job.state, job.started_at = "running", datetime.now(UTC)
        session.commit()
        try:
            name, body, media_type = _made(job.params, job.seed)
        except Exception as error:
            job.state, job.error = "failed", str(error)[:2000]
        else:
            job.output = put(f"{job.id}{name}", body, media_type)
            job.state = "succeeded"
        job.finished_at = datetime.now(UTC)
        session.commit()


class _Texts:
    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = os.environ["BASELINE_MODEL"]
        dtype = getattr(torch, os.environ.get("BASELINE_DTYPE", "float32"))
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.to(os.environ.get("BASELINE_DEVICE", "cpu")).eval()

    def warm_up(self) -> None:
        self({"prompt": "warm", "max_new_tokens": 4}, 0)

    def __call__(self, params: dict[str, Any], seed: int) -> tuple[str, bytes, str]:
        import torch

        inputs = self._tokenizer(params["prompt"], return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            made = self._model.generate(
                **inputs, max_new_tokens=params["max_new_tokens"], do_sample=False, pad_token_id=0
            )
        text: str = self._tokenizer.decode(made[0, inputs["input_ids"].shape[1] :])
        return ".txt", text.encode(), "text/plain"


class _Pictures:
    def __init__(self) -> None:
        import torch
        from diffusers import AutoPipelineForText2Image

        dtype = getattr(torch, os.environ.get("BASELINE_DTYPE", "float32"))
        pipe = AutoPipelineForText2Image.from_pretrained(os.environ["BASELINE_MODEL"], dtype=dtype)
        self._pipe = pipe.to(os.environ.get("BASELINE_DEVICE", "cpu"))
        self._pipe.set_progress_bar_config(disable=True)

    def warm_up(self) -> None:
        self({"prompt": "warm", "width": 64, "height": 64, "num_inference_steps": 1, "format": "png"}, 0)

    def __call__(self, params: dict[str, Any], seed: int) -> tuple[str, bytes, str]:
        import torch

        image = self._pipe(
            params["prompt"],
            width=params["width"],
            height=params["height"],
            num_inference_steps=params["num_inference_steps"],
            guidance_scale=params.get("guidance_scale", 5.0),
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        body = io.BytesIO()
        form = params["format"]
        image.save(body, form.upper(), **({} if form == "png" else {"quality": params["quality"]}))
        return f".{form}", body.getvalue(), f"image/{form}"
