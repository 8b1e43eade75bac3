// The journal at a node: node journal.mjs URL CANISTER read, or node journal.mjs URL CANISTER FIRST, which appends
// numbers from FIRST on, four calls at a time, until the node is gone, and prints each with its place.
import { Actor } from "@icp-sdk/core/agent";
import { connect, main, print } from "./client.mjs";

const WRITERS = 4;

const journal = ({ IDL }) =>
  IDL.Service({
    append: IDL.Func([IDL.Nat], [IDL.Nat], []),
    read: IDL.Func([], [IDL.Record({ entries: IDL.Vec(IDL.Nat), whole: IDL.Bool })], ["query"]),
  });

await main(["URL", "CANISTER", "FIRST"], async (url, canisterId, first) => {
  // No retries: a node that comes back would go on being called.
  const agent = await connect(url, first === "read" ? 3 : 0);
  const actor = Actor.createActor(journal, { agent, canisterId });
  if (first === "read") {
    const { entries, whole } = await actor.read();
    return print({ entries: entries.map(Number), whole });
  }
  let next = Number(first);
  const write = async () => {
    for (;;) {
      const entry = next++;
      const place = await actor.append(BigInt(entry)).catch((error) => {
        throw new Error(`${error.message}`.split("\n")[0]);
      });
      print({ entry, place: Number(place) });
    }
  };
  await Promise.all(Array.from({ length: WRITERS }, write));
});
