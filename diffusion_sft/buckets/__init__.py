"""Which concepts does the base know? From scores and answers to a category and a bucket for each concept."""

from .assign import BucketResult, bucket, write_buckets
from .config import BucketConfig
from .summary import summary_table

__all__ = ["BucketConfig", "BucketResult", "bucket", "summary_table", "write_buckets"]
