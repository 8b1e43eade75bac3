// Increments the counter until the node is gone; prints each acknowledged value: node stream.mjs URL CANISTER
import { counter, main, print } from "./client.mjs";

await main(["URL", "CANISTER"], async (url, canister) => {
  // No retries: a node that comes back would go on being called.
  const actor = await counter(url, canister, 0);
  for (;;) print(await actor.inc());
});
