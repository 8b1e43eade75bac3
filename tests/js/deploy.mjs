// Compiles a Motoko program, creates a canister and installs it: node deploy.mjs URL SOURCE
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import motoko from "motoko";
import { IDL } from "@icp-sdk/core/candid";
import { Actor } from "@icp-sdk/core/agent";
import { Principal } from "@icp-sdk/core/principal";
import { connect, main, print } from "./client.mjs";

const management = ({ IDL }) =>
  IDL.Service({
    provisional_create_canister_with_cycles: IDL.Func(
      [IDL.Record({ amount: IDL.Opt(IDL.Nat), settings: IDL.Opt(IDL.Record({})) })],
      [IDL.Record({ canister_id: IDL.Principal })],
      [],
    ),
    install_code: IDL.Func(
      [
        IDL.Record({
          mode: IDL.Variant({ install: IDL.Null, reinstall: IDL.Null }),
          canister_id: IDL.Principal,
          wasm_module: IDL.Vec(IDL.Nat8),
          arg: IDL.Vec(IDL.Nat8),
        }),
      ],
      [],
      [],
    ),
  });

function compile(source) {
  const name = basename(source);
  motoko.write(name, readFileSync(source, "utf8"));
  return motoko.wasm(name, "ic").wasm;
}

await main(["URL", "SOURCE"], async (url, source) => {
  const wasm = compile(source);
  const agent = await connect(url);
  const ic = Actor.createActor(management, {
    agent,
    canisterId: Principal.managementCanister(),
    // install_code goes to the canister that it changes, creation to any canister of the subnet.
    callTransform: (_, [argument]) => ({
      effectiveCanisterId: argument.canister_id ?? Principal.fromText("aaaaa-aa"),
    }),
  });
  const { canister_id } = await ic.provisional_create_canister_with_cycles({ amount: [], settings: [] });
  const arg = new Uint8Array(IDL.encode([], []));
  await ic.install_code({ mode: { install: null }, canister_id, wasm_module: wasm, arg });
  print({ canister_id: canister_id.toText(), wasm_bytes: wasm.length });
});
