// What Chromium makes of a page: `node browser.mjs URL with|without`, with scripts or without. Prints the document, the complaints
// in the browser's log, and the sizes of the plots as they are laid out.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [url, scripts] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), "browser-"));
// DevTools protocol over two pipes: messages of JSON, each ended by a zero byte.
const browser = spawn(
  "chromium",
  ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", `--user-data-dir=${profile}`],
  { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
);
const [, , , input, output] = browser.stdio;
const waiting = new Map();
const listeners = new Map();
let [partial, number] = ["", 0];
output.setEncoding("utf8");
output.on("data", (text) => {
  const messages = (partial + text).split("\0");
  partial = messages.pop();
  for (const { id, method, params, result, error } of messages.map((message) => JSON.parse(message))) {
    if (id === undefined) {
      listeners.get(method)?.(params);
      continue;
    }
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    error ? reject(new Error(error.message)) : resolve(result);
  }
});
browser.on("error", (error) => {
  console.error(`cannot run chromium; 'cargo xtask setup' installs it: ${error.message}`);
  process.exit(1);
});

function send(method, params = {}, sessionId = undefined) {
  const id = ++number;
  input.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

const { targetId } = await send("Target.createTarget", { url: "about:blank" });
const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
const ask = (method, params) => send(method, params, sessionId);

/// Loads a page; its root node.
async function load(address) {
  const loaded = new Promise((resolve) => listeners.set("Page.loadEventFired", resolve));
  const { errorText } = await ask("Page.navigate", { url: address });
  if (errorText) throw new Error(`${address}: ${errorText}`);
  await loaded;
  return (await ask("DOM.getDocument")).root;
}

const complaints = [];
listeners.set("Log.entryAdded", ({ entry }) => complaints.push(entry.text));
for (const domain of ["Page", "DOM", "Log"]) await ask(`${domain}.enable`);
await ask("Emulation.setScriptExecutionDisabled", { value: scripts === "without" });
const html = async (root) => (await ask("DOM.getOuterHTML", { nodeId: root.nodeId })).outerHTML;

const probe = await html(await load("data:text/html,<p>off</p><script>document.querySelector('p').textContent='on'</script>"));
const root = await load(url);
const { nodeIds } = await ask("DOM.querySelectorAll", { nodeId: root.nodeId, selector: "polyline" });
const plots = [];
for (const nodeId of nodeIds) {
  const { model } = await ask("DOM.getBoxModel", { nodeId });
  plots.push([model.width, model.height]);
}
console.log(JSON.stringify({ scripts: probe.includes("<p>on</p>"), html: await html(root), complaints, plots }));
browser.once("exit", () => rmSync(profile, { recursive: true, force: true, maxRetries: 10 }));
await send("Browser.close");
