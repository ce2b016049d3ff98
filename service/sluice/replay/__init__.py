"""`sluice replay`: a recorded trace, run offline in virtual time over the same policy code that serves."""
