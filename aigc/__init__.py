"""aigc: a self-hosted, distributed job queue for AI-generated content.

from aigc import Client

batch = Client().submit(["New shoes:", "Old hats:"], task="text-generation", model="starter/ads-gpt2")
batch.wait()
for result in batch.results():
    print(result["custom_id"], result["text"])
"""

from producer.client import Batch, Client, Job, WaitTimeout
from shared.errors import AigcError, InvalidJobs, NotAllowed, NotFound, Problem, RequestError, Unavailable
from shared.settings import Settings, load_settings

__all__ = [
    "AigcError",
    "Batch",
    "Client",
    "InvalidJobs",
    "Job",
    "NotAllowed",
    "NotFound",
    "Problem",
    "RequestError",
    "Settings",
    "Unavailable",
    "WaitTimeout",
    "load_settings",
]
