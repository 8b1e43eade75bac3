use super::*;
use crate::signature::testing::Signer;
use crate::testing::{
    self, FIVE_MINUTES, Fields, NOW, blob, delegation, invocation, map, principal, signed, state_paths,
};
use ciborium::Value as Cbor;
use proptest::prelude::*;

const CANISTER: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 7, 1, 1];

fn canister() -> Principal {
    Principal::from_slice(&CANISTER)
}

fn content(signer: &Signer) -> Fields {
    invocation("call", principal(signer), canister(), "inc")
}

fn set(fields: &mut Fields, name: &'static str, value: Cbor) {
    fields.retain(|(other, _)| *other != name);
    fields.push((name, value));
}

#[test]
fn each_scheme_authenticates_its_own_principal() {
    for signer in Signer::each() {
        let content = content(&signer);
        let request_id = testing::hash(&content);
        let request = call(&signed(content, &signer, &signer, vec![]), NOW).unwrap();
        assert_eq!(request.sender(), principal(&signer));
        assert_eq!(request.request_id(), request_id);
        assert_eq!(request.expiry_ns(), NOW + FIVE_MINUTES);
        assert_eq!(request.content().canister, canister());
        assert_eq!(request.content().method, "inc");
    }
}

#[test]
fn the_senders_principal_must_be_the_keys() {
    let (mine, other) = (Signer::ed25519(1), Signer::ed25519(2));
    let error = call(&signed(content(&mine), &other, &other, vec![]), NOW).unwrap_err();
    assert!(matches!(error, AuthenticationError::WrongSender { .. }), "{error}");
    let error = call(&signed(content(&mine), &mine, &other, vec![]), NOW).unwrap_err();
    assert!(matches!(error, AuthenticationError::Signature { .. }), "{error}");
    let error = call(&testing::anonymous(content(&mine)), NOW).unwrap_err();
    assert!(matches!(error, AuthenticationError::Unsigned { field: "sender_pubkey", .. }), "{error}");
}

#[test]
fn anonymous_requests_carry_no_signature() {
    let content = || invocation("call", Principal::anonymous(), canister(), "inc");
    assert_eq!(call(&testing::anonymous(content()), NOW).unwrap().sender(), Principal::anonymous());
    let signer = Signer::ed25519(1);
    let error = call(&signed(content(), &signer, &signer, vec![]), NOW).unwrap_err();
    assert!(matches!(error, AuthenticationError::AnonymousWithKey), "{error}");
}

#[test]
fn any_changed_field_breaks_the_signature() {
    let signer = Signer::ed25519(1);
    let good = content(&signer);
    let changes: Fields = vec![
        ("canister_id", blob([1])),
        ("method_name", "dec".into()),
        ("arg", blob(b"DIDL\0\x01")),
        ("ingress_expiry", (NOW + FIVE_MINUTES - 1).into()),
        ("nonce", blob([2; 16])),
    ];
    for (name, value) in changes {
        let mut changed = good.clone();
        set(&mut changed, name, value);
        let signature = signer.sign(&separated("ic-request", &testing::hash(&good)));
        let envelope = map(vec![
            ("content", map(changed)),
            ("sender_pubkey", blob(signer.der())),
            ("sender_sig", blob(signature)),
        ]);
        let error = call(&testing::bytes(&envelope), NOW).unwrap_err();
        assert!(matches!(error, AuthenticationError::Signature { .. }), "{name}: {error}");
    }
}

#[test]
fn the_expiry_window_is_kept_and_agents_find_their_words() {
    let signer = Signer::ed25519(1);
    let ahead = MAX_EXPIRY_AHEAD.as_nanos() as u64;
    for (expiry, good) in [
        (NOW - 1, false),
        (NOW, true),
        (NOW + ahead, true),
        (NOW + ahead + 1, false),
        (0, false),
        (u64::MAX, false),
    ] {
        let mut content = content(&signer);
        set(&mut content, "ingress_expiry", expiry.into());
        let outcome = call(&signed(content, &signer, &signer, vec![]), NOW);
        assert_eq!(outcome.is_ok(), good, "{expiry}");
        if let Err(error) = outcome {
            assert!(error.to_string().starts_with("Invalid request expiry: "), "{error}");
        }
    }
}

#[test]
fn only_anonymous_reads_are_free_of_expiry() {
    let mut read = state_paths(Principal::anonymous(), &[&[b"time"]]);
    set(&mut read, "ingress_expiry", 0.into());
    read_state(&testing::anonymous(read), NOW).unwrap();
    let mut question = invocation("query", Principal::anonymous(), canister(), "get");
    set(&mut question, "ingress_expiry", 0.into());
    query(&testing::anonymous(question), NOW).unwrap();
    let mut update = invocation("call", Principal::anonymous(), canister(), "inc");
    set(&mut update, "ingress_expiry", 0.into());
    assert!(matches!(call(&testing::anonymous(update), NOW), Err(AuthenticationError::Expiry { .. })));
    let signer = Signer::ed25519(1);
    let mut read = state_paths(principal(&signer), &[&[b"time"]]);
    set(&mut read, "ingress_expiry", 0.into());
    assert!(matches!(
        read_state(&signed(read, &signer, &signer, vec![]), NOW),
        Err(AuthenticationError::Expiry { .. })
    ));
}

#[test]
fn delegations_hand_the_right_on_and_targets_intersect() {
    let [owner, middle, last] = [Signer::ed25519(1), Signer::ed25519(2), Signer::ed25519(3)];
    let targets = |ids: &[&[u8]]| vec![("targets", Cbor::Array(ids.iter().map(blob).collect()))];
    let chain = |first: Fields, second: Fields| {
        vec![delegation(&owner, &middle, NOW, first), delegation(&middle, &last, NOW + 1, second)]
    };
    let send = |chain| call(&signed(content(&owner), &owner, &last, chain), NOW);

    let request = send(chain(vec![], vec![])).unwrap();
    assert_eq!(request.sender(), principal(&owner));
    assert!(request.targets().contain(&Principal::management_canister()));

    let request = send(chain(targets(&[&CANISTER, &[9]]), targets(&[&CANISTER, &[8]]))).unwrap();
    assert!(request.targets().contain(&canister()));
    assert!(!request.targets().contain(&Principal::from_slice(&[9])));

    for (first, second) in
        [(&[&CANISTER[..]][..], &[&[8u8][..]][..]), (&[], &[&CANISTER[..]]), (&[&[9]], &[&CANISTER[..]])]
    {
        let error = send(chain(targets(first), targets(second))).unwrap_err();
        assert!(matches!(error, AuthenticationError::NotATarget(_)), "{error}");
    }
}

#[test]
fn broken_chains_are_refused() {
    let [owner, middle, last] = [Signer::ed25519(1), Signer::ed25519(2), Signer::ed25519(3)];
    let send = |chain| call(&signed(content(&owner), &owner, &last, chain), NOW).unwrap_err();
    let to_last = |from| delegation(from, &last, NOW, vec![]);

    // Expired.
    let error = send(vec![delegation(&owner, &middle, NOW - 1, vec![]), to_last(&middle)]);
    assert!(matches!(error, AuthenticationError::DelegationExpired { index: 0, .. }), "{error}");
    // Signed by a key that is not next in the chain.
    let error = send(vec![delegation(&owner, &middle, NOW, vec![]), to_last(&owner)]);
    assert!(error.to_string().starts_with("delegation 1: "), "{error}");
    // Leads to another key than the one that signed.
    let error = send(vec![delegation(&owner, &middle, NOW, vec![])]);
    assert!(error.to_string().starts_with("sender_sig: "), "{error}");
    // A key twice, the owner's included.
    let error = send(vec![delegation(&owner, &owner, NOW, vec![]), to_last(&owner)]);
    assert!(matches!(error, AuthenticationError::DelegationCycle(0)), "{error}");
    // Too many.
    let error = send((0..21).map(|_| to_last(&owner)).collect());
    assert!(matches!(error, AuthenticationError::Envelope(EnvelopeError::Malformed(_))), "{error}");
}

#[test]
fn permissions_restrict_the_kind_of_request() {
    let (owner, last) = (Signer::ed25519(1), Signer::ed25519(2));
    let chain =
        |permissions: &str| vec![delegation(&owner, &last, NOW, vec![("permissions", permissions.into())])];
    let update = |permissions| call(&signed(content(&owner), &owner, &last, chain(permissions)), NOW);
    update("all").unwrap();
    assert!(matches!(update("queries"), Err(AuthenticationError::QueriesOnly)));
    assert!(matches!(update("none"), Err(AuthenticationError::Permissions { index: 0, .. })));
    let question = invocation("query", principal(&owner), canister(), "get");
    query(&signed(question, &owner, &last, chain("queries")), NOW).unwrap();
}

#[test]
fn kinds_are_not_mixed_up_and_unknown_fields_are_refused() {
    let signer = Signer::ed25519(1);
    let question = invocation("query", principal(&signer), canister(), "get");
    let error = call(&signed(question, &signer, &signer, vec![]), NOW).unwrap_err();
    assert!(matches!(error, AuthenticationError::RequestType { expected: "call", .. }), "{error}");

    let mut more = content(&signer);
    more.push(("priority", 1.into()));
    let error = call(&signed(more, &signer, &signer, vec![]), NOW).unwrap_err();
    assert!(matches!(error, AuthenticationError::Envelope(EnvelopeError::Malformed(_))), "{error}");

    let mut long = content(&signer);
    set(&mut long, "nonce", blob([0; 33]));
    assert!(matches!(
        call(&signed(long, &signer, &signer, vec![]), NOW),
        Err(AuthenticationError::Nonce(33))
    ));

    let mut info = content(&signer);
    info.push(("sender_info", map(vec![("info", blob([]))])));
    let error = call(&testing::bytes(&map(vec![("content", map(info))])), NOW).unwrap_err();
    assert!(
        matches!(error, AuthenticationError::Unsigned { .. } | AuthenticationError::SenderInfo),
        "{error}"
    );

    // Fields twice, blobs as text, trailing bytes.
    let mut twice = content(&signer);
    twice.push(("arg", blob([])));
    let mut text = content(&signer);
    set(&mut text, "arg", "text".into());
    for content in [twice, text] {
        let error = call(&testing::anonymous(content), NOW).unwrap_err();
        assert!(matches!(error, AuthenticationError::Envelope(EnvelopeError::Malformed(_))), "{error}");
    }
    let mut trailing = signed(content(&signer), &signer, &signer, vec![]);
    trailing.push(0);
    assert!(matches!(call(&trailing, NOW), Err(AuthenticationError::Envelope(EnvelopeError::Trailing(1)))));
    let long = vec![0; envelope::MAX_BODY + 1];
    assert!(matches!(call(&long, NOW), Err(AuthenticationError::Envelope(EnvelopeError::TooLong(_)))));
}

#[test]
fn arrays_that_claim_to_be_huge_are_refused_early() {
    // {"content": {"paths": [2^62 items
    let mut bomb = vec![0xa1, 0x67];
    bomb.extend(b"content");
    bomb.extend([0xa1, 0x65]);
    bomb.extend(b"paths");
    bomb.extend([0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(read_state(&bomb, NOW), Err(AuthenticationError::Envelope(_))));
    let many = vec![&[][..]; envelope::MAX_PATHS + 1];
    let many = state_paths(Principal::anonymous(), &many);
    assert!(matches!(read_state(&testing::anonymous(many), NOW), Err(AuthenticationError::Envelope(_))));
    let deep = [vec![0x81; 100_000], vec![0]].concat();
    assert!(matches!(read_state(&deep, NOW), Err(AuthenticationError::Envelope(_))));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_nor_authenticate(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(call(&body, NOW).is_err());
        prop_assert!(query(&body, NOW).is_err());
        prop_assert!(read_state(&body, NOW).is_err());
    }

    /// A flipped bit is refused, or it lies in the encoding alone: then what was authenticated is the same.
    #[test]
    fn a_flipped_bit_changes_nothing_that_was_signed(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let [owner, last] = [Signer::ed25519(1), Signer::ed25519(2)];
        let chain = vec![delegation(&owner, &last, NOW, vec![("targets", Cbor::Array(vec![blob(CANISTER)]))])];
        let good = signed(content(&owner), &owner, &last, chain);
        let mut bad = good.clone();
        let at = position.index(bad.len());
        bad[at] ^= 1 << bit;
        if let Ok(request) = call(&bad, NOW) {
            prop_assert_eq!(request, call(&good, NOW).unwrap());
        }
    }
}
