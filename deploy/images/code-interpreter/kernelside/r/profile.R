options(jupyter.rich_display = TRUE, jupyter.plot_mimetypes = c("text/plain", "image/png"))
options(repos = c(CRAN = "https://cloud.r-project.org"))
