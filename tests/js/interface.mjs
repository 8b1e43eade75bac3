// What official agents do beyond a plain call, against the node at a URL: node interface.mjs URL CANISTER
// CANISTER is a counter that deploy.mjs installed. Prints one line of JSON per check; exit code 1 if one fails.
import * as core from "@icp-sdk/core/agent";
import * as older from "@dfinity/agent";
import { IDL } from "@icp-sdk/core/candid";
import { DelegationChain, DelegationIdentity, ECDSAKeyIdentity, Ed25519KeyIdentity } from "@icp-sdk/core/identity";
import { Secp256k1KeyIdentity } from "@icp-sdk/core/identity/secp256k1";
import { Principal } from "@icp-sdk/core/principal";
import { connect, main, print } from "./client.mjs";

const counter = ({ IDL }) =>
  IDL.Service({ inc: IDL.Func([], [IDL.Nat], []), get: IDL.Func([], [IDL.Nat], ["query"]) });

const agentOf = (url, options = {}) =>
  core.HttpAgent.create({ host: url, shouldFetchRootKey: true, retryTimes: 0, ...options });

function expect(holds, what) {
  if (!holds) throw new Error(what);
}

async function fails(promise, pattern) {
  const error = await promise.then(
    () => undefined,
    (error) => error,
  );
  expect(error !== undefined, "it was accepted");
  expect(pattern.test(String(error)), `it failed otherwise: ${error}`);
}

const checks = {
  async "each signature scheme authenticates"(url, canisterId) {
    const identities = [
      Ed25519KeyIdentity.generate(),
      Secp256k1KeyIdentity.generate(),
      await ECDSAKeyIdentity.generate({ extractable: true }),
    ];
    for (const identity of identities) {
      const actor = core.Actor.createActor(counter, { agent: await agentOf(url, { identity }), canisterId });
      const value = await actor.inc();
      expect((await actor.get()) >= value, "the query is older than the update before it");
    }
  },

  async "a delegation works for its targets and until it expires"(url, canisterId) {
    const [owner, session] = [Ed25519KeyIdentity.generate(), Ed25519KeyIdentity.generate()];
    const call = async (expiration, options) => {
      const chain = await DelegationChain.create(owner, session.getPublicKey(), expiration, options);
      const agent = await agentOf(url, { identity: DelegationIdentity.fromDelegation(session, chain) });
      return core.Actor.createActor(counter, { agent, canisterId }).inc();
    };
    const soon = new Date(Date.now() + 60_000);
    await call(soon, { targets: [Principal.fromText(canisterId)] });
    await fails(call(soon, { targets: [Principal.fromText("aaaaa-aa")] }), /not among the targets/);
    await fails(call(soon, { permissions: "queries" }), /allows queries only/);
    // The node's clock may differ from this one's: long enough ago for any that is in order.
    await fails(call(new Date(Date.now() - 120_000)), /expired/);
  },

  async "an asynchronous call is polled"(url, canisterId) {
    const agent = await agentOf(url);
    const fields = { methodName: "inc", arg: IDL.encode([], []), callSync: false };
    const { reply } = await agent.update(canisterId, fields);
    expect(IDL.decode([IDL.Nat], reply)[0] > 0n, "no number came back");
  },

  async "an agent whose clock is wrong synchronises it"(url, canisterId) {
    const Clock = Date;
    for (const minutes of [-30, 30]) {
      const now = () => Clock.now() + minutes * 60_000;
      globalThis.Date = class extends Clock {
        constructor(...given) {
          super(...(given.length > 0 ? given : [now()]));
        }
        static now = now;
      };
      try {
        const agent = await agentOf(url, { identity: Ed25519KeyIdentity.generate() });
        await core.Actor.createActor(counter, { agent, canisterId }).inc();
        expect(agent.hasSyncedTime(), "the call went through without");
      } finally {
        globalThis.Date = Clock;
      }
    }
  },

  async "the state tree shows the canister"(url, canisterId) {
    const agent = await connect(url);
    const paths = ["time", "controllers", "module_hash", "candid", "subnet"];
    const status = await core.CanisterStatus.request({ agent, canisterId: Principal.fromText(canisterId), paths });
    expect(Math.abs(status.get("time").getTime() - Date.now()) < 60_000, "the time is off");
    expect(status.get("module_hash").length === 64, "no module hash");
    expect(status.get("candid").includes("inc"), "no Candid interface");
    const controllers = status.get("controllers").map((id) => id.toText());
    expect(controllers.includes((await agent.getPrincipal()).toText()), "the deployer is no controller");
    expect(status.get("subnet").nodeKeys.size === 1, "not one node");
  },

  async "private metadata is for controllers"(url, canisterId) {
    const read = async (agent) => {
      const path = new core.CanisterStatus.CustomPath("types", "motoko:stable-types", "utf-8");
      const id = Principal.fromText(canisterId);
      return (await core.CanisterStatus.request({ agent, canisterId: id, paths: [path] })).get("types");
    };
    expect((await read(await connect(url))).includes("count"), "the controller cannot read it");
    expect((await read(await agentOf(url))) === null, "anyone can read it");
  },

  async "the state tree shows the subnet"(url) {
    const agent = await agentOf(url);
    const subnetId = Principal.selfAuthenticating(agent.rootKey);
    const paths = ["publicKey", "nodeKeys", "canisterRanges"];
    const status = await core.SubnetStatus.request({ agent, subnetId, paths });
    expect(status.get("publicKey").length === 133, "no public key");
    expect(status.get("nodeKeys").size === 1, "not one node");
    expect(status.get("canisterRanges").length === 1, "not one range");
  },

  async "another root key is not trusted"(url, canisterId) {
    // The Internet Computer's own key, which agents use unless told otherwise.
    const agent = await core.HttpAgent.create({ host: url, retryTimes: 0 });
    await fails(core.Actor.createActor(counter, { agent, canisterId }).inc(), /signature/i);
  },

  async "rejects are certified or signed"(url, canisterId) {
    const agent = await agentOf(url);
    const fields = { methodName: "nothing", arg: IDL.encode([], []) };
    await fails(agent.update(canisterId, fields), /IC0536/);
    const answer = await agent.query(canisterId, fields);
    expect(answer.status === "rejected" && answer.error_code === "IC0536", "the query was not rejected");
  },

  async "the older agent works"(url, canisterId) {
    const agent = await older.HttpAgent.create({ host: url, shouldFetchRootKey: true, retryTimes: 0 });
    const actor = older.Actor.createActor(counter, { agent, canisterId });
    const value = await actor.inc();
    expect((await actor.get()) >= value, "the query is older than the update before it");
  },
};

await main(["URL", "CANISTER"], async (url, canister) => {
  let failed = 0;
  for (const [check, run] of Object.entries(checks)) {
    try {
      await run(url, canister);
      print({ check, passed: true });
    } catch (error) {
      failed += 1;
      print({ check, passed: false, error: String(error.message ?? error) });
    }
  }
  if (failed > 0) throw new Error(`${failed} checks failed`);
});
