// The JavaScript and TypeScript kernel: JSON lines on two descriptors, code run in this process's global scope.

import { AsyncLocalStorage } from "node:async_hooks";
import fs from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";
import { pathToFileURL } from "node:url";
import util from "node:util";
import vm from "node:vm";

import { transform } from "./transform.mjs";

const upFd = Number(process.env.SANDLOT_UP_FD);
const downFd = Number(process.env.SANDLOT_DOWN_FD);
const language = process.env.SANDLOT_LANGUAGE;
for (const name of ["SANDLOT_UP_FD", "SANDLOT_DOWN_FD", "SANDLOT_LANGUAGE"]) delete process.env[name];

// Which run a piece of code belongs to, also after awaits and in timers.
const runs = new AsyncLocalStorage();
let current = null; // the run in progress: {id, abort}
let interrupted = new Set();

function send(message) {
  // Synchronous: a loop that never yields must still be heard, and a slow reader holds the kernel back.
  let data = Buffer.from(JSON.stringify(message) + "\n");
  while (data.length > 0) {
    try {
      data = data.subarray(fs.writeSync(upFd, data));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

function emit(message) {
  const id = runs.getStore() ?? current?.id;
  if (id !== undefined && !interrupted.has(id)) send({ id, ...message });
}

for (const stream of ["stdout", "stderr"]) {
  const decoders = new util.TextDecoder("utf-8");
  process[stream].write = (chunk, encoding, callback) => {
    if (typeof encoding === "function") callback = encoding;
    const text = typeof chunk === "string" ? chunk : decoders.decode(chunk, { stream: true });
    if (text) emit({ type: stream, text });
    if (callback) process.nextTick(callback);
    return true;
  };
}

// --- what user code finds

function bundleOf(value) {
  const bundle = {};
  for (const [method, mime] of [
    ["_toHtml", "text/html"],
    ["_toSvg", "image/svg+xml"],
    ["_toPng", "image/png"],
    ["_toJpeg", "image/jpeg"],
    ["_toMarkdown", "text/markdown"],
    ["_toLatex", "text/latex"],
  ]) {
    if (typeof value?.[method] === "function") bundle[mime] = String(value[method]());
  }
  if (typeof value?._toMime === "function") Object.assign(bundle, value._toMime());
  bundle["text/plain"] ??= util.inspect(value);
  return bundle;
}

function show(bundle) {
  emit({ type: "display", bundle, main: false });
}

const mimes = { html: "text/html", svg: "image/svg+xml", png: "image/png", jpeg: "image/jpeg",
  markdown: "text/markdown", latex: "text/latex", json: "application/json", text: "text/plain" };
const $$ = { mime: show, display: (value) => show(bundleOf(value)) };
for (const [name, mime] of Object.entries(mimes)) $$[name] = (value) => show({ [mime]: value });
globalThis.$$ = $$;
globalThis.display = $$.display;

const here = () => createRequire(path.join(process.cwd(), "/"));
globalThis.require = Object.assign((name) => here()(name), {
  resolve: (name, options) => here().resolve(name, options),
  get cache() {
    return here().cache;
  },
});
globalThis.module = { exports: {} };
globalThis.exports = globalThis.module.exports;
Object.defineProperty(globalThis, "__dirname", { get: () => process.cwd(), configurable: true });

// Static imports: as the file system has them from the working directory, else from global modules.
async function load(name) {
  let failure;
  try {
    return await dynamicImport(name);
  } catch (error) {
    if (error?.code !== "ERR_MODULE_NOT_FOUND") throw error;
    failure = error;
  }
  let found;
  try {
    found = here().resolve(name);
  } catch {
    throw failure;
  }
  return await import(pathToFileURL(found).href);
}

const dynamicImport = vm.runInThisContext("(name) => import(name)", {
  filename: path.join(process.cwd(), "[code]"),
  importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
});

function pick(namespace, name) {
  if (name in namespace) return namespace[name];
  const fallback = namespace.default;
  if (fallback != null && name in Object(fallback)) return fallback[name];
  throw new SyntaxError(`The requested module does not provide an export named '${name}'`);
}

Object.defineProperty(globalThis, "__sandlot", { value: Object.freeze({ load, pick, named }) });

function named(fn, name) {
  return Object.defineProperty(fn, "name", { value: name, configurable: true });
}

// --- running

let number = 0;

async function run(id, code) {
  number += 1;
  let script;
  let prepared;
  try {
    prepared = transform(code, { typescript: language === "typescript" });
    script = new vm.Script(prepared.text, {
      lineOffset: prepared.lineOffset,
      filename: path.join(process.cwd(), `[${number}]`),
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
  } catch (error) {
    sendError(id, error);
    send({ id, type: "done" });
    return;
  }
  try {
    const aborted = new Promise((_, reject) => {
      current = { id, abort: () => reject(interruption()) };
    });
    aborted.catch(() => {});
    const work = runs.run(id, () => script.runInThisContext({ breakOnSigint: true, displayErrors: false }));
    const result = await Promise.race([work.then((value) => value?.result), aborted]);
    if (result !== undefined) send({ id, type: "display", bundle: bundleOf(result), main: true });
  } catch (error) {
    const isInterrupt = error?.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED";
    sendError(id, isInterrupt ? interruption() : error, `[${number}]:${prepared.lastLine}:`);
  } finally {
    current = null;
    send({ id, type: "done" });
  }
}

function interruption() {
  const error = new Error("Execution was interrupted");
  error.name = "KeyboardInterrupt";
  error.stack = "KeyboardInterrupt: Execution was interrupted";
  return error;
}

function sendError(id, error, wrapper = "[code]") {
  if (error instanceof Error || util.types.isNativeError(error)) {
    const lines = String(error.stack ?? "").split("\n");
    const isOurs = (line) => /^ +at /.test(line) && (/kernel\.mjs|node:internal|node:vm|node:async_hooks/.test(line) || line.includes(wrapper));
    const stack = lines.filter((line) => !isOurs(line));
    send({ id, type: "error", name: String(error.name), value: String(error.message), traceback: stack.join("\n") });
  } else {
    const text = typeof error === "string" ? error : util.inspect(error);
    send({ id, type: "error", name: "Error", value: text, traceback: `Uncaught ${util.inspect(error)}` });
  }
}

process.on("SIGINT", () => {
  if (current === null) return;
  interrupted.add(current.id); // what it still prints is nobody's
  current.abort();
});
for (const event of ["uncaughtException", "unhandledRejection"]) {
  process.on(event, (error) => emit({ type: "stderr", text: `Uncaught ${util.inspect(error)}\n` }));
}

function setEnv({ id, env, remove }) {
  Object.assign(process.env, env);
  for (const name of remove) delete process.env[name];
  send({ id, type: "done" });
}

const down = new net.Socket({ fd: downFd, readable: true, writable: false });
down.setEncoding("utf8");
let pending = "";
let queue = Promise.resolve();
down.on("data", (text) => {
  const lines = (pending + text).split("\n");
  pending = lines.pop();
  for (const line of lines) {
    const message = JSON.parse(line);
    queue = queue.then(() => ("code" in message ? run(message.id, message.code) : setEnv(message)));
  }
});
down.on("end", () => process.reallyExit(0)); // the service is gone
down.on("error", () => process.reallyExit(1));
