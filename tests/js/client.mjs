// The official agent, with every verification on, against the node at a URL.
import { HttpAgent, Actor } from "@icp-sdk/core/agent";
import { Ed25519KeyIdentity } from "@icp-sdk/core/identity";

// A fixed identity, so that a later call is made by the controller that deployed. It is public: for tests only.
const identity = Ed25519KeyIdentity.generate(new TextEncoder().encode("redoubt development identity 001"));

export async function connect(url, retryTimes = 3) {
  const agent = await HttpAgent.create({ host: url, identity, verifyQuerySignatures: true, retryTimes });
  // The node is its own root of trust: its key comes from the node, whose evidence `redoubt up` has verified.
  await agent.fetchRootKey();
  return agent;
}

const counterInterface = ({ IDL }) =>
  IDL.Service({ inc: IDL.Func([], [IDL.Nat], []), get: IDL.Func([], [IDL.Nat], ["query"]) });

export async function counter(url, canisterId, retryTimes) {
  return Actor.createActor(counterInterface, { agent: await connect(url, retryTimes), canisterId });
}

// One line of JSON; a candid nat has no bound, so it is printed as text.
export function print(value) {
  console.log(JSON.stringify(value, (_, v) => (typeof v === "bigint" ? v.toString() : v)));
}

// Runs the main function of a script; an error is one line and exit code 1.
export async function main(names, body) {
  const given = process.argv.slice(2);
  if (given.length !== names.length) {
    console.error(`usage: node ${process.argv[1]} ${names.join(" ")}`);
    process.exit(2);
  }
  try {
    await body(...given);
  } catch (error) {
    console.error(`error: ${error.message ?? error}`);
    process.exit(1);
  }
}
