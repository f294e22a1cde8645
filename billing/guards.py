"""Triggers that refuse to edit the books, on both databases.

SQLite rebuilds a table, and forgets its triggers, when a later migration alters it: such a
migration must call `install` again. On PostgreSQL a constraint also forbids two intervals of one
sandbox to overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db.backends.base.schema import BaseDatabaseSchemaEditor


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Rows of `table` may be updated only while `open_when` holds of the old row, and then not in
    `fixed` columns.

    `open_when` empty: never. Rows are deleted only while `deletable_when` holds; empty: never.
    (SQLite lets rows be deleted: Django empties tables between tests that way.)
    """

    table: str
    open_when: str = ""
    fixed: tuple[str, ...] = ()
    deletable_when: str = ""


GUARDS = (
    Guard(
        table="billing_usageevent",
        open_when="OLD.is_applied = {false}",
        fixed=("execution_id", "seq", "kind", "at_ms", "received_ms", "elapsed_ms"),
    ),
    Guard(
        table="billing_usageinterval",
        open_when="OLD.ended_ms IS NULL",
        fixed=(
            "account_id",
            "sandbox_id",
            "execution_id",
            "state",
            "started_ms",
            "milli_vcpu",
            "memory_mib",
            "disk_mib",
            "open_event_id",
        ),
    ),
    Guard(
        table="billing_usagehour",
        open_when="OLD.invoice_line_id IS NULL",
        deletable_when="OLD.invoice_line_id IS NULL",
    ),
    Guard(
        table="billing_usageadjustment",
        open_when="OLD.invoice_line_id IS NULL",
        fixed=("account_id", "sandbox_id", "hour_ms", "resource", "price_id", "quantity"),
    ),
    Guard(table="billing_creditentry"),
    Guard(table="billing_ledgerentry"),
    Guard(
        table="billing_creditnote",
        open_when="OLD.stripe_id = ''",
        fixed=("number", "amount_minor", "invoice_id"),
    ),
    Guard(table="billing_invoiceline"),
    Guard(
        table="billing_invoice",
        open_when="OLD.status <> 'void'",
        fixed=(
            "account_id",
            "kind",
            "key",
            "number",
            "currency",
            "period_start",
            "period_end",
            "subtotal_minor",
            "credits_minor",
            "tax_minor",
            "total_minor",
            "snapshot",
            "issued_at",
        ),
    ),
    Guard(
        table="billing_price",
        open_when="OLD.to_ms IS NULL",
        fixed=("plan_id", "resource", "currency", "unit_price", "from_ms"),
    ),
)

NO_OVERLAP = """
ALTER TABLE billing_usageinterval ADD CONSTRAINT intervals_of_a_sandbox_do_not_overlap
EXCLUDE USING gist (sandbox_id WITH =, int8range(started_ms, ended_ms) WITH &&)
"""


def install(editor: BaseDatabaseSchemaEditor) -> None:
    """Create every trigger, replacing older ones of the same name."""
    make = _postgresql if editor.connection.vendor == "postgresql" else _sqlite
    for guard in GUARDS:
        for statement in make(guard):
            editor.execute(statement)


def forbid_overlap(editor: BaseDatabaseSchemaEditor) -> None:
    """PostgreSQL only; needs the extension btree_gist, which the owner of a database may create."""
    if editor.connection.vendor == "postgresql":
        editor.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
        editor.execute(NO_OVERLAP)
        # Prices of one plan and resource do not overlap either.
        editor.execute(
            "ALTER TABLE billing_price ADD CONSTRAINT prices_do_not_overlap EXCLUDE USING gist"
            " (coalesce(plan_id, 0) WITH =, resource WITH =, currency WITH =,"
            " int8range(from_ms, to_ms) WITH &&)"
        )


def _sqlite(guard: Guard) -> list[str]:
    refused = f"BEGIN SELECT RAISE(ABORT, '{guard.table}: rows are not edited'); END"
    when = _not(guard.open_when).format(false="0")
    statements = [
        f"DROP TRIGGER IF EXISTS {guard.table}_closed",
        f"CREATE TRIGGER {guard.table}_closed BEFORE UPDATE ON {guard.table} {when} {refused}",
    ]
    if guard.fixed:
        changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in guard.fixed)
        statements += [
            f"DROP TRIGGER IF EXISTS {guard.table}_fixed",
            f"CREATE TRIGGER {guard.table}_fixed BEFORE UPDATE ON {guard.table}"
            f" WHEN {changed} {refused}",
        ]
    return statements


def _postgresql(guard: Guard) -> list[str]:
    name = f"{guard.table}_guard"
    update_ok = guard.open_when.format(false="false") or "false"
    for column in guard.fixed:
        update_ok += f" AND OLD.{column} IS NOT DISTINCT FROM NEW.{column}"
    return [
        f"""
        CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' AND {update_ok} THEN RETURN NEW; END IF;
            IF TG_OP = 'DELETE' AND {guard.deletable_when or "false"} THEN RETURN OLD; END IF;
            RAISE EXCEPTION '{guard.table}: rows are not edited'
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """,
        f"CREATE OR REPLACE TRIGGER {name} BEFORE UPDATE OR DELETE ON {guard.table}"
        f" FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]


def _not(condition: str) -> str:
    return f"WHEN NOT ({condition})" if condition else ""
