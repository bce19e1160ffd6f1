"""`python -m producer.cli` is `aigc`."""

from producer.cli import main

main()
