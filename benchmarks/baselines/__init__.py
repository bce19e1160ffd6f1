"""What this project is compared with, each written as well as an experienced engineer would.

None of them imports this project: they stand on torch, transformers, diffusers, Celery, SQLAlchemy and boto3 alone.
"""
