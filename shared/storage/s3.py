"""A storage in a bucket of anything that speaks S3.

What is asked of the store is little: GET, PUT, DELETE of single objects, multipart uploads, ListObjectsV2. No
conditional writes, no tags, and no checksum algorithm but Content-MD5, which every store knows.
"""

from __future__ import annotations

import functools
import hashlib
import io
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from shared.errors import ObjectMissing, RequestError, Unavailable
from shared.settings import Settings, without_password
from shared.storage import (
    ObjectInfo,
    StoredObject,
    checked_expiry,
    checked_key,
    checked_prefix,
    checked_range,
    is_key,
    prove,
)
from shared.storage.reader import RangeReader
from shared.storage.s3_errors import code_of, does_not_know, explain

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

#: files from this size on are sent in parts of this size; so much of a file is in memory at a time
PART_BYTES = 16 << 20
#: S3 takes 10,000 parts at most; a file that would need more gets larger ones
_MOST_PARTS = 9_000
_READ_TIMEOUT_S = 30
_ATTEMPTS = 5

#: one for all: it reads the large description of S3 once; making clients from it is not thread-safe, using them is
_session = functools.cache(boto3.Session)
_making_clients = threading.Lock()


class S3Storage:
    """Objects below `prefix` in `bucket`. Not spoken to before the first call.

    `attempts` is how often a request is tried, `page` how many objects one page of a listing asks for.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bucket: str,
        prefix: str = "",
        attempts: int = _ATTEMPTS,
        page: int = 1000,
    ) -> None:
        self._settings = settings
        self._bucket = bucket
        self._under = f"{prefix}/" if prefix else ""
        self._page = page
        self._client = _client(settings, settings.s3_endpoint_url, attempts)
        public = settings.s3_public_endpoint_url
        self._public_client = _client(settings, public, attempts) if public else self._client

    @property
    def url(self) -> str:
        """`s3://`, bucket and prefix; the endpoint is not part of it."""
        return f"s3://{self._bucket}/{self._under}".rstrip("/")

    def put(self, key: str, source: bytes | Path, *, media_type: str) -> StoredObject:
        """See `Storage.put`.

        That the store holds what was sent is known from Content-MD5, which it checks, and from its ETag,
        which we check. Where an ETag is no MD5 (some stores and encrypted buckets), the object is read back.
        A crash in the middle of a large file leaves an unfinished upload, which is no object and is not
        listed; `clear_unfinished` removes it later.
        """
        checked_key(key)
        with _opened(source) as reader, self._told_as_unavailable():
            first = _read(reader, PART_BYTES)
            if len(first) < PART_BYTES:
                return self._put_whole(key, first, media_type)
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            return self._put_in_parts(key, reader, first, max(PART_BYTES, -(-size // _MOST_PARTS)), media_type)

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> BinaryIO:
        """See `Storage.open`."""
        name = self._under + checked_key(key)
        checked_range(start, length)
        with self._told_as_unavailable(key):
            if start == 0 and length is None:
                answer = self._client.get_object(Bucket=self._bucket, Key=name)
            else:
                # An empty range cannot be asked for; one byte says whether there is an object.
                last = "" if length is None else start + max(length, 1) - 1
                try:
                    asked = f"bytes={start}-{last}"
                    answer = self._client.get_object(Bucket=self._bucket, Key=name, Range=asked)
                except ClientError as error:
                    if code_of(error) in {"InvalidRange", "416"}:
                        return io.BytesIO()
                    raise
            body = answer["Body"]
            there: int = answer["ContentLength"]
            if start and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:  # a store that ignores ranges
                there = max(0, there - start)
                _skip(body.read, start)
        wanted = there if length is None else min(there, length)
        return io.BufferedReader(RangeReader(body.read, body.close, wanted, self._explain), 128 << 10)

    def link(self, key: str, *, expires_s: int, download_name: str | None = None, media_type: str | None = None) -> str:
        """See `Storage.link`: a presigned GET, at the public endpoint where one is set. Nothing is sent."""
        asked = {"Bucket": self._bucket, "Key": self._under + checked_key(key)}
        if download_name is not None:
            asked["ResponseContentDisposition"] = _disposition(download_name)
        if media_type is not None:
            asked["ResponseContentType"] = media_type
        with self._told_as_unavailable():
            url: str = self._public_client.generate_presigned_url(
                "get_object", Params=asked, ExpiresIn=checked_expiry(expires_s)
            )
            return url

    def delete(self, key: str) -> None:
        """See `Storage.delete`. One request per object: the one for many is broken on many stores."""
        name = self._under + checked_key(key)
        with suppress(ObjectMissing), self._told_as_unavailable(key):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage.list`. Holds one page at a time in memory."""
        name = self._under + checked_prefix(prefix)
        with self._told_as_unavailable():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=name, PaginationConfig={"PageSize": self._page}
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._under)
                    if is_key(key):
                        yield ObjectInfo(key=key, bytes=entry["Size"], modified=entry["LastModified"].timestamp())

    def clear_unfinished(self, older_than_s: float) -> int:
        """See `Storage.clear_unfinished`: multipart uploads that were neither completed nor aborted.

        Some stores list them only where the whole key is asked for (MinIO does); there a lifecycle rule of the bucket
        (`AbortIncompleteMultipartUpload`) has to clear them.
        """
        oldest, cleared = time.time() - older_than_s, 0
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._under)
        try:
            with self._told_as_unavailable():
                for page in pages:
                    for upload in page.get("Uploads", ()):
                        if upload["Key"].startswith(self._under) and upload["Initiated"].timestamp() < oldest:
                            cleared += self._abort(upload["Key"], upload["UploadId"])
        except Unavailable as error:
            if isinstance(error.__cause__, ClientError) and does_not_know(error.__cause__):
                return cleared
            raise
        return cleared

    def check(self) -> None:
        """See `Storage.check`; asks no more than twice, so that an answer comes soon."""
        hasty = S3Storage(self._settings, bucket=self._bucket, prefix=self._under.rstrip("/"), attempts=2)
        prove(hasty, self._address)

    def _abort(self, name: str, upload: str) -> int:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)
        except ClientError as error:
            if code_of(error) not in {"NoSuchUpload", "NoSuchKey", "404"}:  # it has ended by itself meanwhile
                raise
            return 0
        return 1

    def _put_whole(self, key: str, content: bytes, media_type: str) -> StoredObject:
        md5 = _md5(content)
        answer = self._client.put_object(
            Bucket=self._bucket,
            Key=self._under + key,
            Body=content,
            ContentType=media_type,
            ContentMD5=_base64(md5),
        )
        stored = StoredObject(key=key, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        self._confirm(stored, answer.get("ETag", ""), md5.hex())
        return stored

    def _put_in_parts(self, key: str, reader: BinaryIO, first: bytes, part_bytes: int, media_type: str) -> StoredObject:
        name = self._under + key
        digest, md5s, size = hashlib.sha256(), b"", 0
        parts: list[CompletedPartTypeDef] = []
        made = self._client.create_multipart_upload(Bucket=self._bucket, Key=name, ContentType=media_type)
        upload = made["UploadId"]
        try:
            part = first + _read(reader, part_bytes - len(first))
            while part:
                md5, number = _md5(part), len(parts) + 1
                answer = self._client.upload_part(
                    Bucket=self._bucket, Key=name, UploadId=upload, PartNumber=number, Body=part,
                    ContentMD5=_base64(md5),
                )  # fmt: skip
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                digest.update(part)
                md5s, size = md5s + md5, size + len(part)
                part = _read(reader, part_bytes)
            done = self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)
            raise
        stored = StoredObject(key=key, bytes=size, sha256=digest.hexdigest())
        self._confirm(stored, done.get("ETag", ""), f"{_md5(md5s).hex()}-{len(parts)}")
        return stored

    def _confirm(self, stored: StoredObject, etag: str, expected: str) -> None:
        """Raise `Unavailable` unless the store holds what was sent."""
        if etag.strip('"').lower() == expected:
            return
        digest, size = hashlib.sha256(), 0
        with suppress(ObjectMissing), self.open(stored.key) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
        if (size, digest.hexdigest()) != (stored.bytes, stored.sha256):
            with suppress(Unavailable):
                self.delete(stored.key)
            raise Unavailable(
                part="storage",
                address=self._address,
                reason="it took an object and holds something else",
                advice="Look at the storage itself before anything is entrusted to it",
            )

    @property
    def _address(self) -> str:
        endpoint = self._settings.s3_endpoint_url
        return f"{self.url} ({endpoint})" if endpoint else self.url

    def _explain(self, error: Exception) -> Exception:
        return explain(error, address=self._address, bucket=self._bucket)

    @contextmanager
    def _told_as_unavailable(self, key: str | None = None) -> Iterator[None]:
        """Let no error of the client library out. With a key, that it is missing is told as such."""
        try:
            yield
        except ClientError as error:
            if key is not None and code_of(error) in {"NoSuchKey", "404"}:
                raise ObjectMissing(f"storage at {self._address}: there is no object {key}") from error
            raise self._explain(error) from error
        except (BotoCoreError, HTTPError, OSError, EOFError) as error:
            raise self._explain(error) from error


def _client(settings: Settings, endpoint: str | None, attempts: int) -> S3Client:
    """A client with the credentials of the settings, else those that boto3 finds by itself."""
    secret = settings.s3_secret_access_key
    if (settings.s3_access_key_id is None) != (secret is None):
        raise RequestError("set both of AIGC_S3_ACCESS_KEY_ID and AIGC_S3_SECRET_ACCESS_KEY, or neither")
    if endpoint is not None:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise RequestError(
                f"not an S3 endpoint: {without_password(endpoint)!r}; write http://host:port or https://host"
            )
    if settings.s3_ca is not None and not settings.s3_ca.exists():
        raise RequestError(f"AIGC_S3_CA: there is no file {settings.s3_ca}")
    addressing = settings.s3_addressing
    config = Config(
        signature_version="s3v4",
        connect_timeout=settings.connect_timeout_s,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path" if addressing == "auto" and endpoint else addressing},
        # Otherwise boto3 sends trailing CRCs that many stores do not understand.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    try:
        with _making_clients:
            return _session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=settings.s3_region or "us-east-1",
                aws_access_key_id=settings.s3_access_key_id,
                aws_secret_access_key=secret.get_secret_value() if secret else None,
                verify=str(settings.s3_ca) if settings.s3_ca else None,
                config=config,
            )
    except (BotoCoreError, ValueError) as error:
        raise RequestError(f"the S3 settings make no sense: {error}") from error


def _opened(source: bytes | Path) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return source.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {source}: {error.strerror}") from error


def _read(reader: BinaryIO, most: int) -> bytes:
    try:
        return reader.read(most)
    except OSError as error:
        raise ValueError(f"cannot read the source: {error.strerror}") from error


def _skip(read: Callable[[int], bytes], count: int) -> None:
    while count and (chunk := read(min(count, 1 << 20))):
        count -= len(chunk)


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode("ascii")


def _disposition(name: str) -> str:
    """`Content-Disposition` for a file of this name (RFC 6266), whatever characters it has."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\/%' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
