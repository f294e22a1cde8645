"""Request parameters, decoded from forms and checked against the SDK's TypedDicts."""

from __future__ import annotations

import builtins
import functools
import sys
import types
import typing
from typing import Any, Literal, Union
from urllib.parse import parse_qsl

import stripe.params as params
from stripe.params import billing, billing_portal, checkout

# Options of a request, which the SDK's older types list among its parameters.
REQUEST_OPTIONS = {
    "api_key",
    "content_type",
    "headers",
    "idempotency_key",
    "max_network_retries",
    "stripe_account",
    "stripe_context",
    "stripe_version",
}
PARAMS: dict[str, Any] = {
    "customers.create": params.CustomerCreateParams,
    "customers.update": params.CustomerModifyParams,
    "customers.search": params.CustomerSearchParams,
    "payment_methods.list": params.PaymentMethodListParams,
    "payment_methods.attach": params.PaymentMethodAttachParams,
    "payment_methods.detach": params.PaymentMethodDetachParams,
    "checkout.sessions.create": checkout.SessionCreateParams,
    "billing_portal.sessions.create": billing_portal.SessionCreateParams,
    "invoices.create": params.InvoiceCreateParams,
    "invoices.list": params.InvoiceListParams,
    "invoices.add_lines": params.InvoiceAddLinesParams,
    "invoices.finalize": params.InvoiceFinalizeInvoiceParams,
    "invoices.pay": params.InvoicePayParams,
    "invoices.void": params.InvoiceVoidInvoiceParams,
    "invoices.mark_uncollectible": params.InvoiceMarkUncollectibleParams,
    "invoice_payments.list": params.InvoicePaymentListParams,
    "refunds.create": params.RefundCreateParams,
    "refunds.list": params.RefundListParams,
    "credit_notes.create": params.CreditNoteCreateParams,
    "events.list": params.EventListParams,
    "billing.meter_events.create": billing.MeterEventCreateParams,
}


class BadParam(Exception):
    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param, self.code = param, code


def decode_form(body: str) -> dict[str, Any]:
    """`a[0][b]=c` as nested dicts and lists."""
    root: dict[str, Any] = {}
    for name, value in parse_qsl(body, keep_blank_values=True):
        head, _, rest = name.partition("[")
        keys = [head] + ([part.rstrip("]") for part in rest.split("[")] if rest else [])
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return {key: _lists(value) for key, value in root.items()}


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(key.isdigit() for key in node):
        return [_lists(node[key]) for key in sorted(node, key=int)]
    return {key: _lists(value) for key, value in node.items()}


def check(operation: str, given: dict[str, Any]) -> None:
    """Raises: BadParam for a name, a missing name or a value that the SDK's types do not know."""
    kind = PARAMS.get(operation)
    if kind is not None:
        _check_dict(kind, given, "")
    elif given:
        raise BadParam(f"{operation} takes no parameters", next(iter(given)), "parameter_unknown")


def _check_dict(kind: Any, given: dict[str, Any], where: str) -> None:
    hints = _hints(kind)
    for name, value in given.items():
        path = f"{where}[{name}]" if where else name
        if name not in hints or (not where and name in REQUEST_OPTIONS):
            raise BadParam(f"Received unknown parameter: {path}", path, "parameter_unknown")
        if not _fits(hints[name], value, path):
            raise BadParam(f"Invalid value for {path}: {value!r}", path, "parameter_invalid")
    for name in sorted(kind.__required_keys__ - given.keys()):
        path = f"{where}[{name}]" if where else name
        raise BadParam(f"Missing required param: {path}.", path, "parameter_missing")


class _Unknown:
    """A type that exists for type checkers only; it fits everything."""

    def __class_getitem__(cls, _item: Any) -> Any:
        return Any


class _Names(dict[str, Any]):
    """Names of a module, where some are imported for type checkers only."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = vars(sys.modules[module])

    def __missing__(self, name: str) -> Any:
        return self.module.get(name, getattr(builtins, name, _Unknown))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, {}, _Names(kind.__module__))


def _fits(kind: Any, value: Any, path: str) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _fits_any(args, value, path)
    if origin is Literal:
        return value in args
    if origin is list:
        return isinstance(value, list) and all(_fits(args[0], v, path) for v in value)
    if origin in (dict, typing.Mapping):
        return isinstance(value, dict)
    if origin is not None and args:  # NotRequired and the like
        return _fits(args[0], value, path)
    if isinstance(kind, type) and hasattr(kind, "__required_keys__"):
        if not isinstance(value, dict):
            return False
        _check_dict(kind, value, path)
        return True
    return _fits_plain(kind, value)


def _fits_any(options: tuple[Any, ...], value: Any, path: str) -> bool:
    words = [option for option in options if typing.get_origin(option) is Literal]
    if words and isinstance(value, str):  # `Literal[…] | str` is an open list; ours is closed
        return any(value in typing.get_args(option) for option in words)
    refusal: BadParam | None = None
    for option in options:
        try:
            if _fits(option, value, path):
                return True
        except BadParam as error:
            refusal = error
    if refusal is not None:
        raise refusal
    return False


def _fits_plain(kind: Any, value: Any) -> bool:
    if kind is int:
        return isinstance(value, str) and value.lstrip("-").isdigit()
    if kind is bool:
        return value in ("true", "false")
    if kind is float:
        return isinstance(value, str) and value.replace(".", "", 1).lstrip("-").isdigit()
    return kind in (Any, _Unknown) or isinstance(value, str) or not isinstance(kind, type)
