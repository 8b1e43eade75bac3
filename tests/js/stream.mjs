// Increments the counter until the node is gone; prints each acknowledged value: node stream.mjs URL CANISTER
import { counter, main, print } from "./client.mjs";

await main(["URL", "CANISTER"], async (url, canister) => {
  const actor = await counter(url, canister);
  for (;;) print(await actor.inc());
});
