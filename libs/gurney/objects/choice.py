"""Which store a deployment's settings name."""

from gurney.errors import Invalid
from gurney.objects.folder import FolderObjects
from gurney.objects.port import Objects
from gurney.objects.s3 import S3Objects
from gurney.objects.s3_account import Account
from gurney.objects.sigv4 import Credentials
from gurney.settings import Settings


def objects_of(settings: Settings) -> Objects:
    """Return the store, not opened yet: the S3 server where one is named, else a folder of this host.

    Raises `Invalid` where the keys of the S3 server's account are missing.
    """
    if settings.s3_url is None:
        return FolderObjects(settings.data / "objects")
    secret = settings.s3_secret_key.get_secret_value()
    if not settings.s3_access_key or not secret:
        raise Invalid("s3_url is set: s3_access_key and s3_secret_key are needed, too")
    credentials = Credentials(settings.s3_access_key, secret, settings.s3_region)
    return S3Objects(Account(settings.s3_url, settings.s3_bucket, credentials, settings.s3_public_url))
