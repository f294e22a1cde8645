"""The code interpreter: an HTTP service in the sandbox that runs code in kernels and streams what they produce."""
