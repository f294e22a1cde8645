# Sandlot's commands. The logic is in ops/ (`python3 -m ops COMMAND`).
.DEFAULT_GOAL := help
SHELL := /bin/bash
OPS := ./ops/run

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: ## Install what is missing, start everything, print the URLs (DETACH=1: in the background)
	@$(OPS) up

down: ## Stop everything that `make up` started (KEEP=1: sandboxes live on)
	@$(OPS) down

status: ## Show what runs
	@$(OPS) status

reset: ## Stop, then forget all users, keys and sandboxes (YES=1: without asking)
	@$(OPS) reset

env: ## Print the SDK's settings for a user: eval "$$(make -s env EMAIL=me@example.com)"
	@$(OPS) env --email "$(EMAIL)"

tls: ## Make a certificate for SANDLOT_DOMAIN (sandlot.localhost); `make up` then serves HTTPS
	@$(OPS) tls

doctor: ## Check this machine; one line each: OK, or what is wrong and how to fix it
	@$(OPS) doctor

test: ## Install what tests need and run all of them (ARGS: pytest arguments, for some)
	@$(OPS) test $(ARGS)

soak: ## Run the tests that take minutes: billing under long trouble, an hour of 1,000 sandboxes
	@$(OPS) test -m slow

check: ## Format, lint, types, import rules, migrations
	@$(OPS) check

fmt: ## Format the code
	@$(OPS) fmt

bench: ## Measure creating and commands beside plain Docker, against what runs here
	@$(OPS) bench $(ARGS)

templates: ## Build and register code-interpreter-v1 and httpbin (ARGS: names, for some)
	@$(OPS) templates $(ARGS)

assets: ## Copy the dashboard's browser libraries out of npm packages
	@$(OPS) assets

.PHONY: help up down status reset env tls doctor test soak check fmt bench assets templates
