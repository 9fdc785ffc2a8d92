"""Which concepts does the base know? From scores and answers to a category and a bucket for each concept."""

from .assign import BucketResult, bucket, write_buckets
from .config import BucketConfig

__all__ = ["BucketConfig", "BucketResult", "bucket", "write_buckets"]
