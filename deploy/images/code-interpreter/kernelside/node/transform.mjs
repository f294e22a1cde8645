// Turns a cell into a script for the global scope: imports become loads, top-level declarations become properties of
// the global object (so that they may be declared again), top-level `await` works, the last expression is the value.
// Text is inserted and replaced in place, so that line numbers in stacks are those of the cell.

import { createRequire } from "node:module";

import { parse } from "acorn";

const require = createRequire(import.meta.url);

const OPTIONS = {
  ecmaVersion: "latest",
  sourceType: "script", // sloppy mode, as in a REPL
  allowAwaitOutsideFunction: true,
  allowImportExportEverywhere: true,
  allowHashBang: true,
};

/** {text, lineOffset, lastLine} of a script whose value is a promise of {result}. Throws SyntaxError. */
export function transform(code, { typescript }) {
  const source = typescript ? strip(code) : code;
  let tree;
  try {
    tree = parse(source, OPTIONS);
  } catch (error) {
    if (typescript) throw toSyntaxError(error, code);
    try {
      return rewrite(strip(code));
    } catch {
      throw toSyntaxError(error, code);
    }
  }
  return rewrite(source, tree);
}

function strip(code) {
  const { transformSync } = require("amaro"); // Node's own stripper; loaded late, it is big
  const attempt = (mode) => transformSync(code, { mode, filename: "[code]" }).code;
  try {
    return attempt("strip-only"); // types become blanks, so lines and columns stay
  } catch (error) {
    if (error?.code !== "UnsupportedSyntax") throw new SyntaxError(error?.message ?? String(error));
    return attempt("transform"); // enums, namespaces
  }
}

function toSyntaxError(error, code) {
  if (!(error instanceof SyntaxError) || error.loc === undefined) return error;
  const { line, column } = error.loc;
  const message = error.message.replace(/ \(\d+:\d+\)$/, "");
  const shown = new SyntaxError(message);
  shown.stack = `[code]:${line}\n${code.split("\n")[line - 1] ?? ""}\n${" ".repeat(column)}^\n\nSyntaxError: ${message}`;
  return shown;
}

function rewrite(source, tree = parse(source, OPTIONS)) {
  const edits = []; // [position, length, text]
  const names = new Set();
  const functions = new Set();
  const replace = (start, end, text) => edits.push([start, end - start, text]);
  const insert = (at, text) => edits.push([at, 0, text]);

  const declare = (declaration) => {
    const { kind, declarations } = declaration;
    for (const { id } of declarations) collect(id, names);
    // `let x = 1, y;` -> `(x = 1, y = undefined);`; a `var` without a value changes nothing
    replace(declaration.start, declarations[0].start, ";(");
    for (const item of declarations) {
      if (item.init === null) insert(item.id.end, kind === "var" ? "" : " = undefined");
      if (item.init !== null && item.id.type === "ObjectPattern") {
        insert(item.start, "(");
        insert(item.end, ")");
      }
    }
    insert(declarations.at(-1).end, ");");
  };

  for (const node of tree.body) {
    switch (node.type) {
      case "VariableDeclaration":
        declare(node);
        break;
      case "ClassDeclaration":
        names.add(node.id.name);
        insert(node.start, `;${node.id.name} = `);
        insert(node.end, ";");
        break;
      case "FunctionDeclaration":
        names.add(node.id.name);
        functions.add(node.id);
        break;
      case "ImportDeclaration":
        replace(node.start, node.end, importText(node, names) + "\n".repeat(lineCount(source, node)));
        break;
      case "ExportNamedDeclaration":
      case "ExportDefaultDeclaration":
        rewriteExport(node, { declare, names, functions, replace, insert, source });
        break;
      case "ExportAllDeclaration":
        replace(node.start, node.end, "");
        break;
      default:
        hoistVars(node, names, replace, insert);
    }
  }

  const last = tree.body.at(-1);
  if (last?.type === "ExpressionStatement") {
    // An object holds the value, because a promise as such would be awaited on the way out.
    const end = source[last.end - 1] === ";" ? last.end - 1 : last.end;
    insert(last.start, ";return {result: (");
    replace(end, last.end, ")};");
  }
  // A function can be called before its line. Its local twin has another name, so that code in this cell finds the
  // session's one, which a later cell may replace.
  let hoisted = "";
  for (const { name, start, end } of functions) {
    replace(start, end, `__fn_${name}`);
    hoisted += `${name} = __sandlot.named(__fn_${name}, ${JSON.stringify(name)});`;
  }
  const declared = [...names].map((name) => `var ${name};`).join("");
  return {
    text: `${declared}(async () => {${hoisted}\n${apply(source, edits)}\n})()`,
    lineOffset: -1,
    lastLine: source.split("\n").length + 1, // of the wrapper, which is no user's business
  };
}

function rewriteExport(node, { declare, names, functions, replace, insert, source }) {
  const inner = node.declaration;
  if (!inner) {
    replace(node.start, node.end, "");
  } else if (node.type === "ExportDefaultDeclaration" && !inner.id) {
    replace(node.start, inner.start, ";(");
    insert(inner.end, ")");
  } else {
    replace(node.start, inner.start, "");
    if (inner.type === "VariableDeclaration") declare(inner);
    else if (inner.type === "FunctionDeclaration") {
      names.add(inner.id.name);
      functions.add(inner.id);
    } else {
      names.add(inner.id.name);
      insert(inner.start, `;${inner.id.name} = `);
      insert(inner.end, ";");
    }
  }
}

function importText(node, names) {
  const from = JSON.stringify(node.source.value);
  if (node.specifiers.length === 0) return `;await __sandlot.load(${from});`;
  const parts = [];
  for (const item of node.specifiers) {
    const local = item.local.name;
    names.add(local);
    if (item.type === "ImportNamespaceSpecifier") parts.push(`${local} = m`);
    else {
      const name = item.type === "ImportDefaultSpecifier" ? "default" : item.imported.name ?? item.imported.value;
      parts.push(`${local} = __sandlot.pick(m, ${JSON.stringify(name)})`);
    }
  }
  return `;((m) => {${parts.join("; ")}})(await __sandlot.load(${from}));`;
}

function lineCount(source, node) {
  return source.slice(node.start, node.end).split("\n").length - 1;
}

/** `var` inside blocks and loops belongs to the session too; functions and classes keep theirs. */
function hoistVars(node, names, replace, insert) {
  if (node === null || typeof node !== "object") return;
  if (Array.isArray(node)) {
    for (const item of node) hoistVars(item, names, replace, insert);
    return;
  }
  if (typeof node.type !== "string" || /Function|Class/.test(node.type)) return;
  if (node.type === "VariableDeclaration" && node.kind === "var") {
    for (const { id } of node.declarations) collect(id, names);
    const needsParentheses = node.declarations[0].id.type === "ObjectPattern";
    const isLoopHead = node.declarations.length === 1 && node.declarations[0].init === null;
    if (isLoopHead) replace(node.start, node.declarations[0].start, "");
    else {
      replace(node.start, node.declarations[0].start, needsParentheses ? "(" : "");
      if (needsParentheses) insert(node.declarations.at(-1).end, ")");
    }
  }
  for (const key of Object.keys(node)) {
    if (key !== "type" && key !== "start" && key !== "end") hoistVars(node[key], names, replace, insert);
  }
}

function collect(pattern, names) {
  switch (pattern?.type) {
    case "Identifier":
      names.add(pattern.name);
      break;
    case "ObjectPattern":
      for (const item of pattern.properties) collect(item.type === "RestElement" ? item.argument : item.value, names);
      break;
    case "ArrayPattern":
      for (const item of pattern.elements) collect(item, names);
      break;
    case "AssignmentPattern":
      collect(pattern.left, names);
      break;
    case "RestElement":
      collect(pattern.argument, names);
      break;
  }
}

function apply(source, edits) {
  // Stable by position; at one position, in the order in which they were asked for.
  const ordered = edits.map((edit, order) => [...edit, order]).sort((a, b) => a[0] - b[0] || a[3] - b[3]);
  let text = "";
  let at = 0;
  for (const [start, length, insertion] of ordered) {
    if (start > at) {
      text += source.slice(at, start);
      at = start;
    }
    text += insertion;
    at = Math.max(at, start + length);
  }
  return text + source.slice(at);
}
