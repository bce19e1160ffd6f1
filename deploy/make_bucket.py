"""Make the bucket that AIGC_STORE_URL names, unless it is there. Waits a minute for a storage that is just starting."""

import sys
import time
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from aigc import AigcError, Settings, load_settings

PATIENCE_S = 60.0
PAUSE_S = 2.0
_THERE = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


def make_bucket(settings: Settings) -> str:
    """Make the bucket; returns its name. Raises what boto3 raises if the storage refuses."""
    address = urlsplit(settings.storage_url)
    if address.scheme != "s3":
        sys.exit(f"AIGC_STORE_URL is {settings.storage_url}: only an s3:// address has a bucket to make")
    secret = settings.s3_secret_access_key
    client = boto3.Session().client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region or "us-east-1",
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        verify=str(settings.s3_ca) if settings.s3_ca else None,
        config=Config(
            s3={"addressing_style": settings.s3_addressing},
            connect_timeout=settings.connect_timeout_s,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    region = settings.s3_region or "us-east-1"
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=address.netloc, **where)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _THERE:
            raise
    client.head_bucket(Bucket=address.netloc)
    return address.netloc


def main() -> None:
    """Try until it works or the patience is over."""
    try:
        settings = load_settings()
    except AigcError as error:
        sys.exit(str(error))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            sys.stdout.write(f"bucket {make_bucket(settings)} is there\n")
        except (BotoCoreError, ClientError) as error:
            refused = isinstance(error, ClientError) and error.response["Error"]["Code"] in _REFUSED
            if refused or time.monotonic() > deadline:
                sys.exit(f"storage at {settings.s3_endpoint_url or settings.storage_url}: {error}")
            time.sleep(PAUSE_S)
        else:
            return


if __name__ == "__main__":
    main()
