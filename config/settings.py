"""Every setting of the control plane, read once from the environment.

A clone runs with these defaults on one machine; `SANDLOT_ENV=production` refuses default secrets.
Each variable is described in docs/reference/settings.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from csp.constants import NONCE, NONE, SELF

from config.env import (
    BadSetting,
    derive_secret,
    env_bool,
    env_int,
    env_list,
    env_secret,
    env_str,
    load_env_file,
    parse_database_url,
)

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = Path(env_str("SANDLOT_STATE_DIR") or BASE_DIR / ".state").resolve()
load_env_file(STATE_DIR / "secrets.env")

IS_PRODUCTION = env_str("SANDLOT_ENV", "development") == "production"
IS_TESTING = "pytest" in sys.modules
DEBUG = env_bool("SANDLOT_DEBUG")

# --- Secrets ---------------------------------------------------------------------------------

DEFAULT_SECRET = "insecure-default-for-one-laptop-only"  # noqa: S105 refused in production

SECRET_KEY = env_secret("SANDLOT_SECRET_KEY", DEFAULT_SECRET)
SECRET_KEY_FALLBACKS = [key for key in [env_secret("SANDLOT_SECRET_KEY_OLD")] if key]
NODE_SECRET = env_secret("SANDLOT_NODE_SECRET", DEFAULT_SECRET)
# Separate purposes, separate secrets: SECRET_KEY may then be rotated without losing every API key.
API_KEY_SECRET = env_secret("SANDLOT_API_KEY_SECRET") or derive_secret(SECRET_KEY, "api-keys")
SANDBOX_TOKEN_SECRET = env_secret("SANDLOT_SANDBOX_TOKEN_SECRET") or derive_secret(
    SECRET_KEY, "sandbox-tokens"
)
ADMIN_TOKEN = env_secret("SANDLOT_ADMIN_TOKEN")  # empty: the operator's routes refuse everybody
INTERNAL_TOKEN = derive_secret(SECRET_KEY, "internal")  # worker to web

if IS_PRODUCTION:
    for _name, _value in (("SANDLOT_SECRET_KEY", SECRET_KEY), ("SANDLOT_NODE_SECRET", NODE_SECRET)):
        if _value == DEFAULT_SECRET or len(_value) < 32:
            raise BadSetting(f"{_name} must be set to at least 32 random characters in production")
    if DEBUG:
        raise BadSetting("SANDLOT_DEBUG must be off in production")

# --- Where we answer -------------------------------------------------------------------------

WEB_PORT = env_int("SANDLOT_WEB_PORT", 8000, minimum=1)
GATEWAY_PORT = env_int("SANDLOT_GATEWAY_PORT", 8001, minimum=1)
DOMAIN = env_str("SANDLOT_DOMAIN", "localhost")
PUBLIC_URL = env_str("SANDLOT_PUBLIC_URL", f"http://localhost:{WEB_PORT}").rstrip("/")
SANDBOX_URL = env_str("SANDLOT_SANDBOX_URL", f"http://localhost:{GATEWAY_PORT}").rstrip("/")
# Answered as `domain` when sandboxes live elsewhere than the API; clients then use it.
SANDBOX_DOMAIN = env_str("SANDLOT_SANDBOX_DOMAIN")
_public_host = urlsplit(PUBLIC_URL).hostname or "localhost"
ALLOWED_HOSTS = env_list("SANDLOT_ALLOWED_HOSTS") or [
    *dict.fromkeys(["localhost", "127.0.0.1", "[::1]", _public_host, DOMAIN, f"api.{DOMAIN}"])
]
CSRF_TRUSTED_ORIGINS = env_list("SANDLOT_TRUSTED_ORIGINS") or [PUBLIC_URL]
_is_https = PUBLIC_URL.startswith("https://")
if env_bool("SANDLOT_BEHIND_PROXY"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _is_https
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_HSTS_SECONDS = env_int("SANDLOT_HSTS_SECONDS", 31_536_000 if _is_https else 0, minimum=0)
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
APPEND_SLASH = False  # clients of the API follow no redirects

MAX_BODY_BYTES = 16 * 1024 * 1024
UPLOADS_DIR = Path(env_str("SANDLOT_UPLOADS_DIR") or STATE_DIR / "uploads")  # of template builds
MAX_UPLOAD_BYTES = env_int("SANDLOT_MAX_UPLOAD_MB", 4096, minimum=1) * 1024 * 1024
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
FILE_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
# Threads that serve requests; each may wait for a node while others go on.
WEB_THREADS = env_int("SANDLOT_WEB_THREADS", 32, minimum=2)

# --- Applications ----------------------------------------------------------------------------

INSTALLED_APPS = [
    "daphne",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "channels",
    "rest_framework",
    "drf_spectacular",
    "django_htmx",
    "csp",
    "accounts",
    "billing",
    "templates_app",
    "sandboxes",
    "frontend",
]

MIDDLEWARE = [
    "config.middleware.ApiEdge",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "allauth.usersessions.middleware.UserSessionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "frontend" / "templates"],  # before allauth's own pages
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "csp.context_processors.nonce",
                "frontend.pages.shell",
            ],
        },
    }
]

CONTENT_SECURITY_POLICY: dict[str, Any] = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, NONCE],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

STATIC_URL = "/static/"
STATIC_ROOT = Path(env_str("SANDLOT_STATIC_ROOT") or BASE_DIR / "staticfiles")
# Hashed names need the manifest that collectstatic makes; without it, plain names by the finders.
IS_COLLECTING = "collectstatic" in sys.argv
WHITENOISE_USE_FINDERS = not (STATIC_ROOT / "staticfiles.json").is_file() or DEBUG or IS_TESTING
# Each test client builds the middleware anew, and would look at every file of every app again.
WHITENOISE_AUTOREFRESH = IS_TESTING or DEBUG
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if WHITENOISE_USE_FINDERS and not IS_COLLECTING
        else "frontend.storage.HashedStaticFiles"
    },
}

# --- Database, cache, broker, channel layer ---------------------------------------------------

DATABASE_URL = env_secret("DATABASE_URL")
if DATABASE_URL:
    DATABASES = {
        "default": parse_database_url(
            DATABASE_URL, pool_size=env_int("SANDLOT_DATABASE_POOL", WEB_THREADS + 4, minimum=2)
        )
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": STATE_DIR / "db.sqlite3",
            # A file for tests as well: in memory, threads meet locks that no other database has.
            "TEST": {"NAME": Path(tempfile.gettempdir()) / f"sandlot-test-{os.getpid()}.sqlite3"},
            "CONN_MAX_AGE": None,  # a thread keeps its connection; opening one costs a millisecond
            "OPTIONS": {
                "timeout": 20,
                # Take the write lock at once: a read that turns into a write would fail as busy.
                "transaction_mode": "IMMEDIATE",
                "init_command": (
                    "PRAGMA journal_mode=WAL;"
                    "PRAGMA synchronous=NORMAL;"
                    "PRAGMA busy_timeout=20000;"
                    "PRAGMA cache_size=-16000;"
                    "PRAGMA mmap_size=134217728;"
                ),
            },
        }
    }

REDIS_URL = env_secret("REDIS_URL")
_prefix = env_str("SANDLOT_REDIS_PREFIX", "sandlot")
if REDIS_URL:
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": REDIS_URL,
            "KEY_PREFIX": _prefix,
        }
    }
    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {"hosts": [REDIS_URL], "prefix": f"{_prefix}:channels"},
        }
    }
    CELERY_BROKER_URL = REDIS_URL
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, object] = {"global_keyprefix": f"{_prefix}:celery:"}
else:
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    CELERY_BROKER_URL = "filesystem://localhost"
    _queue_dir = STATE_DIR / "celery"
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(_queue_dir / "queue"),
        "data_folder_out": str(_queue_dir / "queue"),
        "control_folder": str(_queue_dir / "control"),
        "processed_folder": str(_queue_dir / "processed"),
        "store_processed": False,
    }

CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True  # tasks are safe to run twice
CELERY_TASK_TIME_LIMIT = 600
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE_FILENAME = str(STATE_DIR / "celery" / "beat-schedule")
# A task still waiting when its next turn comes is dropped, so that a stopped worker's backlog
# does not run at once.
CELERY_BEAT_SCHEDULE = {
    "settle-sandboxes": {
        "task": "sandboxes.tasks.settle_sandboxes",
        "schedule": timedelta(seconds=2),
        "options": {"expires": 2},
    },
    "settle-builds": {
        "task": "sandboxes.tasks.settle_builds",
        "schedule": timedelta(seconds=5),
        "options": {"expires": 5},
    },
    "find-lost-nodes": {
        "task": "sandboxes.tasks.find_lost_nodes",
        "schedule": timedelta(seconds=10),
        "options": {"expires": 10},
    },
    "forget-old-records": {
        "task": "sandboxes.tasks.forget_old_records",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "enforce-spend-limits": {
        "task": "sandboxes.tasks.enforce_spend_limits",
        "schedule": timedelta(seconds=15),
        "options": {"expires": 15},
    },
    "roll-up-usage": {
        "task": "billing.tasks.roll_up_usage",
        "schedule": timedelta(minutes=5),
        "options": {"expires": 300},
    },
    "close-billing-periods": {
        "task": "billing.tasks.close_periods",
        "schedule": timedelta(minutes=10),
        "options": {"expires": 600},
    },
    "talk-to-stripe": {
        "task": "billing.tasks.talk_to_stripe",
        "schedule": timedelta(seconds=10),
        "options": {"expires": 10},
    },
    "reconcile-with-stripe": {
        "task": "billing.tasks.reconcile_with_stripe",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "send-billing-notices": {
        "task": "billing.tasks.send_notices",
        "schedule": timedelta(seconds=30),
        "options": {"expires": 30},
    },
    "check-the-books": {
        "task": "billing.tasks.check_the_books",
        "schedule": timedelta(days=1),
        "options": {"expires": 3600},
    },
}

# --- Accounts --------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
if IS_TESTING:
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ACCOUNT_ADAPTER = "accounts.allauth_adapter.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = env_str("SANDLOT_EMAIL_VERIFICATION", "optional")
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_LOGOUT_ON_GET = False
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_DEFAULT_HTTP_PROTOCOL = "https" if _is_https else "http"
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes", "webauthn"]
MFA_PASSKEY_LOGIN_ENABLED = False
SIGN_UP_IS_OPEN = env_bool("SANDLOT_SIGN_UP", True)
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
ACCOUNT_LOGOUT_REDIRECT_URL = "account_login"

EMAIL_HOST = env_str("SANDLOT_SMTP_HOST")
EMAIL_BACKEND = (
    "django.core.mail.backends.smtp.EmailBackend"
    if EMAIL_HOST
    else "django.core.mail.backends.console.EmailBackend"
)
EMAIL_PORT = env_int("SANDLOT_SMTP_PORT", 587, minimum=1)
EMAIL_HOST_USER = env_str("SANDLOT_SMTP_USER")
EMAIL_HOST_PASSWORD = env_secret("SANDLOT_SMTP_PASSWORD")
EMAIL_USE_TLS = env_bool("SANDLOT_SMTP_TLS", True)
EMAIL_TIMEOUT = 15
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env_str("SANDLOT_FROM_EMAIL", f"Sandlot <sandlot@{DOMAIN}>")

# --- Sandboxes -------------------------------------------------------------------------------

NODE_LOST_AFTER_SECONDS = env_int("SANDLOT_NODE_LOST_AFTER_SECONDS", 60, minimum=5)
NODE_STALE_AFTER_SECONDS = env_int("SANDLOT_NODE_STALE_AFTER_SECONDS", 20, minimum=3)
DEFAULT_POOL_SIZE = env_int("SANDLOT_POOL_SIZE", 2, minimum=0)
CREATE_RATE_LIMIT = env_bool("SANDLOT_CREATE_RATE_LIMIT", True)  # the plan's creates per second
# vCPU and memory promised per machine beyond what it has: most sandboxes idle most of the time.
CPU_OVERCOMMIT = env_int("SANDLOT_CPU_OVERCOMMIT", 16, minimum=1)
MEMORY_OVERCOMMIT = env_int("SANDLOT_MEMORY_OVERCOMMIT", 4, minimum=1)
EVENT_RETENTION_DAYS = env_int("SANDLOT_EVENT_RETENTION_DAYS", 7, minimum=1)
METRIC_RETENTION_DAYS = env_int("SANDLOT_METRIC_RETENTION_DAYS", 7, minimum=1)

# --- Billing ---------------------------------------------------------------------------------

# With keys, invoices are collected through Stripe; without, everything works locally.
STRIPE_SECRET_KEY = env_secret("STRIPE_SECRET_KEY")
# Comma-separated: while a secret is being rotated, both are accepted.
STRIPE_WEBHOOK_SECRETS = [
    word.strip() for word in env_secret("STRIPE_WEBHOOK_SECRET").split(",") if word.strip()
]
STRIPE_API_BASE = env_str("STRIPE_API_BASE")  # empty: Stripe itself; else a fake, for tests
STRIPE_METER_EVENTS = env_bool("STRIPE_METER_EVENTS")  # mirror hourly usage for their charts
if STRIPE_SECRET_KEY:
    # A form whose answer leads to Stripe's pages; browsers apply the policy to that as well.
    CONTENT_SECURITY_POLICY["DIRECTIVES"]["form-action"] += [
        "https://checkout.stripe.com",
        "https://billing.stripe.com",
        "https://invoice.stripe.com",
        *([STRIPE_API_BASE] if STRIPE_API_BASE else []),
    ]
BILLING_DEFAULT_PLAN = env_str("SANDLOT_DEFAULT_PLAN", "self-hosted")
BILLING_ENFORCEMENT = env_bool("SANDLOT_BILLING_ENFORCEMENT", True)
BILLING_PAGE_URL = f"{PUBLIC_URL}/billing"
BILLING_NET_DAYS = env_int("SANDLOT_INVOICE_NET_DAYS", 14, minimum=0)
BILLING_INVOICE_PREFIX = env_str("SANDLOT_INVOICE_PREFIX", "INV-")
BILLING_SELLER_NAME = env_str("SANDLOT_SELLER_NAME", "Sandlot")
BILLING_SELLER_ADDRESS = env_str("SANDLOT_SELLER_ADDRESS")
BILLING_SELLER_TAX_ID = env_str("SANDLOT_SELLER_TAX_ID")
BILLING_SELLER_BANK = env_str("SANDLOT_SELLER_BANK")

# --- REST framework --------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "config.drf.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "UNAUTHENTICATED_TOKEN": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Sandlot API",
    "DESCRIPTION": "Sandboxes for AI-generated code, on E2B's wire protocol.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "PREPROCESSING_HOOKS": ["config.schema.only_public_api"],
    "POSTPROCESSING_HOOKS": ["config.schema.add_errors"],
    "APPEND_COMPONENTS": {
        "securitySchemes": {
            "ApiKeyAuth": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "AccessTokenAuth": {"type": "http", "scheme": "bearer"},
            "AdminTokenAuth": {"type": "apiKey", "in": "header", "name": "X-Admin-Token"},
        }
    },
    "SECURITY": [{"ApiKeyAuth": []}],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
}

# --- Logging ---------------------------------------------------------------------------------

_log_level = env_str("SANDLOT_LOG_LEVEL", "INFO").upper()
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "config.log.TextFormatter"},
        "json": {"()": "config.log.JsonFormatter"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": env_str("SANDLOT_LOG_FORMAT", "json" if IS_PRODUCTION else "text"),
        }
    },
    "root": {"handlers": ["stderr"], "level": _log_level},
    "loggers": {
        # One line per refused request is the access log's business, and 4xx are the caller's.
        "django.request": {"level": "ERROR"},
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "daphne": {"level": "WARNING"},
        "urllib3": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
        "stripe": {"level": "WARNING"},
        "weasyprint": {"level": "ERROR"},
        "celery.beat": {"level": "WARNING"},
        # A task that runs every two seconds says nothing by running.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
    },
}
