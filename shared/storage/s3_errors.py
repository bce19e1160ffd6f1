"""What an S3 store answers when it does not do as asked, in words that an operator can act on."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.exceptions import ClientError
from urllib3.exceptions import NameResolutionError

from shared.errors import StorageFull, Unavailable

_LATER = "Try again later; the log of the storage says more"
_KEYS = "Check AIGC_S3_ACCESS_KEY_ID and AIGC_S3_SECRET_ACCESS_KEY, or what boto3 finds in their place"
_REGION = "Set AIGC_S3_REGION to the region of the bucket"
_ROOM = "Make room there, or raise its quota"
_RIGHTS = "Let this access key get, put, delete and list objects in the bucket"

#: code of the answer → what it means, what to do
_CODES: dict[str, tuple[str, str]] = {
    "AccessDenied": ("it refuses us access", _RIGHTS),
    "AllAccessDisabled": ("it refuses us access", _RIGHTS),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "BadDigest": ("the content was damaged on the way", _LATER),
    "EntityTooLarge": (
        "it refuses a request of this size",
        "Let the store, and any proxy before it, take 32 MiB or more; an exhausted quota may say so too",
    ),
    "ExpiredToken": ("the temporary credentials have expired", "Renew the credentials of this process"),
    "InvalidAccessKeyId": ("it does not know the access key", _KEYS),
    "InvalidToken": ("it does not know the session token", "Renew the credentials of this process"),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "RequestTimeTooSkewed": ("the clocks differ too much", "Set the clock of this machine or of the storage"),
    "XAmzContentSHA256Mismatch": ("the content was damaged on the way", _LATER),
    "SignatureDoesNotMatch": ("the access key or its secret is wrong", _KEYS),
}
_FULL = {
    "InsufficientCapacity", "InsufficientStorage", "QuotaExceeded", "StorageFull",
    "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "507",
}  # fmt: skip
#: what an answer without a body, such as one to HEAD or from a proxy, says by its status alone
_STATUS = {"403": "AccessDenied", "413": "EntityTooLarge", "301": "PermanentRedirect"}

#: how it failed before there was an answer → what it means, what to do; the first that fits
_FAILURES: list[tuple[type[Exception], str, str]] = [
    (boto.NoCredentialsError, "there are no credentials", _KEYS),
    (boto.PartialCredentialsError, "only a part of the credentials is there", _KEYS),
    (boto.CredentialRetrievalError, "the credentials cannot be had", _KEYS),
    (
        boto.SSLError,
        "its certificate is not trusted",
        "Set AIGC_S3_CA to the certificate of the authority that signed it, and use the host name it names",
    ),
    (boto.ProxyConnectionError, "the HTTP proxy does not answer", "Check HTTPS_PROXY and NO_PROXY"),
    (
        boto.ConnectTimeoutError,
        "nothing answers there in time",
        "Check AIGC_S3_ENDPOINT_URL and whether a firewall is in between",
    ),
    (
        boto.EndpointConnectionError,
        "nobody listens there",
        "Start the storage, or check AIGC_S3_ENDPOINT_URL",
    ),
    (boto.ReadTimeoutError, "it took the request and does not answer", _LATER),
]


def code_of(error: ClientError) -> str:
    """The code of an S3 answer such as `NoSuchKey`, or its HTTP status where it has no code."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(_status_of(error))


def does_not_know(error: ClientError) -> bool:
    """Whether the store has no such operation at all."""
    return code_of(error) in {"NotImplemented", "MethodNotAllowed", "405", "501"} or _status_of(error) in {405, 501}


def explain(error: Exception, *, address: str, bucket: str) -> Unavailable:
    """The error to raise for one of botocore or of the network. It repeats nothing that may hold a key."""
    if isinstance(error, ClientError):
        return _explain_answer(error, address, bucket)
    if isinstance(getattr(error, "kwargs", {}).get("error"), NameResolutionError):
        advice = "Check AIGC_S3_ENDPOINT_URL and the name server of this machine"
        return Unavailable(part="storage", address=address, reason="its host name is not known", advice=advice)
    for kind, reason, advice in _FAILURES:
        if isinstance(error, kind):
            return Unavailable(part="storage", address=address, reason=reason, advice=advice)
    reason = str(error) if isinstance(error, EOFError) else f"the connection broke ({type(error).__name__})"
    return Unavailable(part="storage", address=address, reason=reason, advice=_LATER)


def _explain_answer(error: ClientError, address: str, bucket: str) -> Unavailable:
    code, status = code_of(error), _status_of(error)
    if code in _FULL or status == 507:
        return StorageFull(part="storage", address=address, reason=f"it has no room left ({code})", advice=_ROOM)
    if code in {"NoSuchBucket", "404"}:
        reason, advice = f"there is no bucket {bucket!r}", "Create it, or correct AIGC_STORE_URL"
    elif status >= 500 or status == 429 or code in {"SlowDown", "RequestTimeout"}:
        reason, advice = f"it is overloaded or failing ({code}, status {status})", _LATER
    elif known := _CODES.get(code) or _CODES.get(_STATUS.get(str(status), "")):
        reason, advice = f"{known[0]} ({code})", known[1]
    else:
        reason, advice = f"it refuses the request ({code}, status {status})", _LATER
    return Unavailable(part="storage", address=address, reason=reason, advice=advice)


def _status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
