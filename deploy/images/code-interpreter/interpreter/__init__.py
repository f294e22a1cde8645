"""The code interpreter: runs code in kernels and streams what they produce, over HTTP."""
