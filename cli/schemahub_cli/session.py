"""The boto3 session of the embedded AWS. Apart from ``target``, so that naming a target imports no AWS SDK."""

from __future__ import annotations

from typing import Any

import boto3

from local.ministack import REGION, ROOT_CREDENTIALS


class LocalSession(boto3.Session):
    """A session whose clients talk to the embedded AWS."""

    def __init__(self, endpoint: str) -> None:
        keys = ROOT_CREDENTIALS
        super().__init__(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name=REGION)
        self.endpoint = endpoint

    def client(self, *args: Any, **kwargs: Any) -> Any:
        return super().client(*args, **{"endpoint_url": self.endpoint, **kwargs})

    def resource(self, *args: Any, **kwargs: Any) -> Any:
        return super().resource(*args, **{"endpoint_url": self.endpoint, **kwargs})
