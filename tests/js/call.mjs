// Calls a method of the counter: node call.mjs URL CANISTER inc|get
import { counter, main, print } from "./client.mjs";

await main(["URL", "CANISTER", "METHOD"], async (url, canister, method) => {
  const actor = await counter(url, canister);
  if (typeof actor[method] !== "function") throw new Error(`the counter has no method ${method}; try inc or get`);
  print({ result: await actor[method]() });
});
