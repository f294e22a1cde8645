"""IPython's settings in the kernel, named on its command line."""

c = get_config()  # noqa: F821

c.IPKernelApp.extensions = ["sandlot_kernel"]
c.InteractiveShell.colors = "nocolor"
c.InteractiveShell.color_info = False
c.PlainTextFormatter.max_seq_length = 0  # long lists are shown whole
c.HistoryManager.hist_file = ":memory:"
c.InteractiveShellApp.matplotlib = None
c.InlineBackend.close_figures = True
