"""The way in: submit, poll, fetch results, run the embedded profile. Never imports torch."""
